"""kdrun compare: one table from run directories alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.analysis.comparison import read_rows, table, write_csv
from kdrun.analysis.curves import draw_curves
from kdrun.analysis.verdicts import find_baseline, verdicts
from kdrun.errors import UserError


def compare(
    folders: Sequence[Path], *, csv: Path | None = None, plot: Path | None = None, baselines: Sequence[str] = ()
) -> None:
    """Print the table of all runs at or below the folders; write it to `csv` too, and their curves to `plot`.
    For each baseline, a second table: the other students against it, example by example.

    Raises:
        UserError: when a folder is missing or holds no run, or the CSV file exists already.
    """
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; give run directories or folders that hold some")
    if csv is not None and csv.exists():
        raise UserError(f"--csv {csv}: the file exists; name a new one, or remove it first")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {plot}: must end in .png or .svg")
    rows = read_rows(folders)
    if not rows:
        raise UserError(f"{', '.join(map(str, folders))}: no run directory there (a folder with run.json)")
    against = [find_baseline(rows, name) for name in baselines]
    header, cells = table(rows)
    _print(header, cells)
    for baseline in against:
        others = [row for row in rows if row is not baseline and row.settings.get("role") != "teacher"]
        judged = {row.label: verdicts(row, baseline) for row in others}
        headings = [f"{v.measure} ({v.baseline:.3g})" for v in next(iter(judged.values()), [])]
        print(f"Against {baseline.label}: mean difference [95 % interval, paired bootstrap over examples]")
        _print(["run", *headings], [[label, *map(str, found)] for label, found in judged.items()])
    if csv is not None:
        write_csv(csv, rows)
        print(f"written: {csv}")
    if plot is not None:
        draw_curves([row for row in rows if (row.folder / "metrics.jsonl").exists()], plot)
        print(f"written: {plot}")


def _print(header: list[str], cells: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(header_style="bold")
    for i, name in enumerate(header):
        numeric = any(isinstance(line[i], int | float) and not isinstance(line[i], bool) for line in cells)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for line in cells:
        shown.add_row(*map(_spell, line))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 40 + 14 * len(header))
    console.print(shown)


def _spell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)
