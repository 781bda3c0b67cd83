"""Progress with the time left: a rich bar on a terminal, a plain line now and then elsewhere, a file for a sweep."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from kdrun.runs.ranks import rank

FILE = "progress.json"
# Where the cell that runs here writes its progress; a sweep has one display, and it reads these files.
_cell: ContextVar[Path | None] = ContextVar("cell", default=None)


class Task:
    """One piece of work of known length. Call it with what was done; say what to show beside the bar with `show`.

    Args:
        done: what an earlier attempt has done; it does not count towards the pace.
    """

    def __init__(self, name: str, total: int, *, done: int = 0) -> None:
        self.name, self.total, self.done, self.text = name, total, done, ""
        self._start = self._said = time.monotonic()
        self._before = done

    def __call__(self, count: int = 1) -> None:
        """Count work as done."""
        self.done += count
        self.refresh()

    def show(self, text: str) -> None:
        """What to show beside the bar."""
        self.text = text

    def left_s(self, now: float) -> float:
        """Seconds left at the pace so far."""
        return (now - self._start) / max(self.done - self._before, 1) * (self.total - self.done)

    def refresh(self) -> None:
        """A plain line every ten seconds; the terminal's bar and the file override this."""
        now = time.monotonic()
        if now - self._said >= 10:
            self._said = now
            line = f"{self.name}: {self.done}/{self.total}, {self.left_s(now):.0f} s left  {self.text}"
            print(line, file=sys.stderr, flush=True)


class FileTask(Task):
    """Work whose progress goes to a file, at most once a second, and to no display."""

    def __init__(self, name: str, total: int, *, done: int = 0, folder: Path) -> None:
        super().__init__(name, total, done=done)
        self._file = folder / FILE
        self._said = float("-inf")

    def refresh(self) -> None:
        """Write the file when the last time is a second ago."""
        now = time.monotonic()
        if now - self._said < 1:
            return
        self._said = now
        left = round(self.left_s(now), 1) if self.done > self._before else None
        content = {"name": self.name, "done": self.done, "total": self.total, "left_s": left, "time": time.time()}
        aside = self._file.with_name(f".{FILE}")  # no fsync: after a crash of the machine nobody asks for it
        aside.write_text(json.dumps(content))
        aside.replace(self._file)


class SilentTask(Task):
    """Work of a rank whose like rank 0 shows."""

    def refresh(self) -> None:
        """Nothing."""


@contextmanager
def progress_in(folder: Path) -> Iterator[None]:
    """While the body runs, progress goes to a file in this folder and to no display; the file goes at the end."""
    token = _cell.set(folder)
    try:
        yield
    finally:
        _cell.reset(token)
        (folder / FILE).unlink(missing_ok=True)


@contextmanager
def progress(name: str, total: int, *, done: int = 0) -> Iterator[Task]:
    """Show progress while the body runs; yields the task to call.

    Args:
        done: what an earlier, resumed attempt has done already.
    """
    if rank():
        yield SilentTask(name, total)
    elif cell := _cell.get():
        task = FileTask(name, total, done=done, folder=cell)
        task.refresh()
        yield task
    elif sys.stderr.isatty():
        with _bar(name, total, done) as bar:
            yield bar
    else:
        yield Task(name, total, done=done)


@contextmanager
def _bar(name: str, total: int, done: int) -> Iterator[Task]:
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

        yield Bar(name, total, done=done)
