"""What is seen of a sweep: a live table of its cells on a terminal, a line a change elsewhere, a summary at the end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdrun.config import SHORT_KEYS
from kdrun.runs.sweep import Cell, best, read_cells, read_sweep, time_left

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "waiting": "dim"}


@contextmanager
def shown(folder: Path) -> Iterator[None]:
    """Show the cells of a sweep on standard error while the body runs; it is the only display."""
    watch = Watch(folder)
    if not sys.stderr.isatty():
        with watch.lines():
            yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(
        console=console, get_renderable=lambda: watch.table(max(console.height - 6, 3), console.width),
        refresh_per_second=2, transient=True, redirect_stdout=sys.stdout.isatty(),
    ):  # fmt: skip
        yield


class Watch:
    """The cells of a sweep that is under way, and what was told of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.since = read_sweep(folder, key="sweep")["attempts"][-1]["started"]
        self.known: dict[int, Cell] = {}
        self.told = {cell.number: cell.status for cell in self.read() if cell.status == "done"}

    def read(self) -> list[Cell]:
        """The cells now."""
        return read_cells(self.folder, since=self.since, known=self.known)

    def table(self, height: int, width: int) -> Any:
        """The cells as a table of at most so many lines: what runs or failed, then the best, then the next."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        cells = self.read()
        leader = best(cells)
        table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        wide = width >= 110
        table.add_column("cell", justify="right", width=4)
        table.add_column("words", width=max(width - (95 if wide else 71), 12), no_wrap=True)
        table.add_column("state", width=11)
        table.add_column("progress", width=24 if wide else 18, no_wrap=True)
        if wide:
            table.add_column("", width=16)
        table.add_column("left", width=9, no_wrap=True)
        name = leader.objective[0] if leader and leader.objective else "objective"
        table.add_column(name, justify="right", width=10, no_wrap=True)
        table.add_column("", width=4)
        rows = _most_telling(cells, leader, height)
        for cell in rows:
            bar = [ProgressBar(total=cell.total, completed=cell.done, width=16) if cell.total else ""] if wide else []
            table.add_row(
                str(cell.number), spell_words(cell), f"[{COLOURS[cell.status]}]{cell.status}[/]",
                f"{cell.work} {cell.done}/{cell.total}" if cell.total else cell.work or _first(cell.error, 40), *bar,
                spell_s(cell.left_s) if cell.left_s is not None else "", spell_objective(cell),
                "[bold]best[/]" if cell is leader else "",
            )  # fmt: skip
        hidden = len(cells) - len(rows)
        foot = ", ".join(filter(None, [f"{hidden} more cells" if hidden else "", _left(cells)]))
        return Group(Text(f"{self.folder}: {_counts(cells)}"), table, Text(foot, style="dim"))

    @contextmanager
    def lines(self) -> Iterator[None]:
        """While the body runs, a plain line whenever a cell changes its state."""
        ended = threading.Event()

        def tell_until_the_end() -> None:
            while not ended.wait(0.5):
                self.tell()

        if self.told:
            print(f"{len(self.told)} of {len(self.read())} cells are done already", file=sys.stderr)
        thread = threading.Thread(target=tell_until_the_end, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.tell()

    def tell(self) -> None:
        """Print a line for each cell whose state has changed."""
        cells = self.read()
        for cell in cells:
            if self.told.get(cell.number, "waiting") != cell.status:
                self.told[cell.number] = cell.status
                print(self.line(cell, cells), file=sys.stderr, flush=True)

    def line(self, cell: Cell, cells: Sequence[Cell]) -> str:
        """What a cell's change of state is told as."""
        said = f"cell {cell.number} of {len(cells)} ({spell_words(cell)}): {cell.status}"
        if cell.status == "done":
            shown = spell_objective(cell, name=True)
            said += f" in {spell_s(cell.spent_s)}" + (f", {shown}" if shown else "")
            said += ", the best so far" if best(cells) is cell else ""
            return f"{said}; {_left(cells)}" if _left(cells) else said
        return f"{said}: {_first(cell.error, 200)} ({cell.folder / 'log.txt'})" if cell.error else said


def _most_telling(cells: Sequence[Cell], leader: Cell | None, limit: int) -> list[Cell]:
    """At most `limit` cells, in order of their numbers."""
    order = {"running": 0, "failed": 1, "interrupted": 1, "waiting": 3, "done": 4}
    ranked = sorted(cells, key=lambda cell: (2 if cell is leader else order[cell.status], cell.number))
    return sorted(ranked[:limit], key=lambda cell: cell.number)


def _counts(cells: Sequence[Cell]) -> str:
    counts = {status: sum(cell.status == status for cell in cells) for status in COLOURS}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _left(cells: Sequence[Cell]) -> str:
    left = time_left(cells)
    return "" if left is None else f"about {spell_s(left)} left in all"


def _first(text: str | None, width: int) -> str:
    line = (text or "").split("\n")[0].rstrip(": ")
    return line if len(line) <= width else line[: width - 3] + "..."


def spell_words(cell: Cell) -> str:
    """The swept words as they are typed: mu=0.3 for loss.mu=0.3."""
    short = (w.removeprefix("loss.") if w.split("=")[0].removeprefix("loss.") in SHORT_KEYS else w for w in cell.words)
    return " ".join(short) or "as it is"


def spell_s(seconds: float) -> str:
    """A duration: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def spell_objective(cell: Cell, *, name: bool = False) -> str:
    """The value that is minimised, with its name if asked; empty when the cell has none."""
    if cell.objective is None:
        return ""
    return f"{cell.objective[0]} {cell.objective[1]:.4f}" if name else f"{cell.objective[1]:.4f}"


def summarise(folder: Path) -> None:
    """Print how a sweep ended: what is not done and why, the best cell, and the commands to go on with."""
    cells = read_cells(folder)
    print(f"{folder}: {_counts(cells)} of {len(cells)} cells")
    for cell in cells:
        if cell.status not in ("done", "waiting"):
            print(f"cell {cell.number} ({spell_words(cell)}): {cell.status}: {_first(cell.error, 200) or 'elsewhere'}")
    if leader := best(cells):
        print(f"best: cell {leader.number} ({spell_words(leader)}), {spell_objective(leader, name=True)}, the least of "
              f"{sum(cell.objective is not None for cell in cells)}: {leader.folder}")  # fmt: skip
    else:
        print("best: none, for no cell is done")
    print("go on with:")
    if any(cell.status != "done" for cell in cells):
        print(f"  kdrun sweep resume={folder}")
    if leader:
        print(f"  kdrun evaluate run={leader.folder} eval.seeds=[10,20,30,40,50]")
        print(f"  kdrun compare {folder} --baseline {leader.number}")
        print(f"  kdrun report {folder} -o report.html")
