"""Progress with the time left: a rich bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One piece of work of known length. Call it with what was done; say what to show beside the bar with `show`."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.text = name, total, 0, ""
        self._start = self._said = time.monotonic()
        self._before = 0

    def begin_at(self, done: int) -> None:
        """What an earlier attempt has done; it does not count towards the pace."""
        self.done = self._before = done

    def __call__(self, count: int = 1) -> None:
        """Count work as done."""
        self.done += count
        self.refresh()

    def show(self, text: str) -> None:
        """What to show beside the bar."""
        self.text = text

    def refresh(self) -> None:
        """A plain line every ten seconds; the terminal's bar overrides this."""
        now = time.monotonic()
        if now - self._said >= 10:
            self._said = now
            pace = (now - self._start) / max(self.done - self._before, 1)
            print(
                f"{self.name}: {self.done}/{self.total}, {pace * (self.total - self.done):.0f} s left  {self.text}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def progress(name: str, total: int, *, done: int = 0) -> Iterator[Task]:
    """Show progress while the body runs; yields the task to call.

    Args:
        done: what an earlier, resumed attempt has done already.
    """
    if not sys.stderr.isatty():
        task = Task(name, total)
        task.begin_at(done)
        yield task
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(bar_width=24), MofNCompleteColumn(), Elapsed(),
        TextColumn("left"), Remaining(), TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        bar = bars.add_task(name, total=total, completed=done, text="")

        class Bar(Task):
            def refresh(self) -> None:
                bars.update(bar, completed=self.done, text=self.text)

        task = Bar(name, total)
        task.begin_at(done)
        yield task
