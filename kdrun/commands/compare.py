"""kdrun compare: settings that differ x metrics, what it cost, and verdicts against a baseline."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kdrun.analysis import online
from kdrun.analysis.anchors import with_teacher_and_sft
from kdrun.analysis.comparison import Row, read_rows, with_distinct_labels, write_csv
from kdrun.analysis.curves import draw_curves
from kdrun.analysis.seeds import Group, group_by_seed
from kdrun.analysis.tables import (
    Table,
    cost_table,
    main_headings,
    main_table,
    spell,
    verdict_table,
    write_verdicts,
)
from kdrun.analysis.verdicts import NOTHING_SHOWN, Verdict, find_baseline, mixed_examples, unpaired, verdicts
from kdrun.errors import UserError
from kdrun.runs.directory import write_text
from kdrun.untrusted import printable


def compare(
    sources: Sequence[str | Path],
    *,
    baselines: Sequence[str] = (),
    csv: Path | None = None,
    latex: Path | None = None,
    markdown: Path | None = None,
    plot: Path | None = None,
    every_metric: bool = False,
) -> None:
    """Print the tables of all runs at or below the folders (or in W&B) and, for each baseline, the verdicts against it.

    Args:
        csv: every metric, a line a run; with baselines also CSV-verdicts.csv, a line a comparison of any measure.

    Raises:
        UserError: when a source is missing or holds no run, or a file exists already.
    """
    verdicts_csv = csv.with_name(f"{csv.stem}-verdicts{csv.suffix}") if csv is not None and baselines else None
    options = [("csv", csv), ("csv", verdicts_csv), ("latex", latex), ("markdown", markdown), ("plot", plot)]
    files = [(option, path) for option, path in options if path is not None]
    for option, path in files:
        if path.exists():
            raise UserError(f"--{option} {path}: the file exists; name a new one, or remove it first")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {plot}: must end in .png or .svg")
    rows, mirrored = read_sources(sources)
    rows, hints = with_teacher_and_sft(rows)
    groups = group_by_seed(rows)
    against = [find_baseline(groups, name) for name in baselines]

    names = [name for group in groups for name in group.metrics]
    headings = {n: n for n in sorted(set(names))} if every_metric else main_headings(names)
    quality, costs = main_table(groups, headings=headings), cost_table(groups)
    judged = [(baseline, judge(groups, baseline)) for baseline in against]
    verdict_tables = [verdict_table(baseline, found, headings) for baseline, found in judged]
    print_table(quality, title="quality")
    if costs.lines and not every_metric:
        print_table(costs, title="cost")
    for baseline, table in zip(against, verdict_tables, strict=True):
        print_verdicts(baseline, table)
    notes = [*hints, *mixed_examples(groups)]
    notes += [line for baseline, found in judged for group, _ in found for line in unpaired(group, baseline)]
    if mirrored:
        notes.append("W&B holds no values of single examples, so its runs have no paired intervals")
    for line in dict.fromkeys(notes):
        print(f"- {printable(line)}")

    if csv is not None:
        write_csv(csv, rows)
    if verdicts_csv is not None:
        write_verdicts(verdicts_csv, judged)
    if latex is not None:
        write_text(latex, quality.as_latex())
    if markdown is not None:
        shown = [table for table in [quality, costs, *verdict_tables] if table.lines]
        write_text(markdown, "\n".join(table.as_markdown() for table in shown))
    if plot is not None:
        _plot(rows, mirrored, plot)
    for _, path in files:
        print(f"written: {path}")


def read_sources(sources: Sequence[str | Path]) -> tuple[list[Row], dict[Path, Any]]:
    """The rows of directories and of W&B, and the W&B runs by their row's folder.

    Raises:
        UserError: when a source is missing or holds no run.
    """
    folders = [Path(source) for source in sources if not str(source).startswith(online.PREFIX)]
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; give run directories or folders that hold some")
    online.refuse_offline_folders(folders)
    rows = read_rows(folders)
    if folders and not rows:
        raise UserError(f"{', '.join(map(str, folders))}: no run directory there (a folder with run.json)")
    runs = [run for s in sources if str(s).startswith(online.PREFIX) for run in online.fetch_runs(str(s))]
    mirrored = {online.online_row(run).folder: run for run in runs}
    return with_distinct_labels([*rows, *map(online.online_row, mirrored.values())]), mirrored


def judge(groups: Sequence[Group], baseline: Group) -> list[tuple[Group, list[Verdict]]]:
    """The verdicts on every finished group but the teacher and the baseline itself."""
    others = [g for g in groups if g is not baseline and g.role == "student" and g.status == "done"]
    return [(group, verdicts(group, baseline)) for group in others]


def _plot(rows: Sequence[Row], mirrored: dict[Path, Any], path: Path) -> None:
    with tempfile.TemporaryDirectory() as downloaded:
        drawn = []
        for i, row in enumerate(rows):
            if row.folder in mirrored:
                online.save_curves(mirrored[row.folder], Path(downloaded) / str(i))
                drawn.append(replace(row, folder=Path(downloaded) / str(i)))
            elif (row.folder / "metrics.jsonl").exists():
                drawn.append(row)
        draw_curves(drawn, path)


def print_table(table: Table, *, title: str = "") -> None:
    """Print a table; what the terminal is too narrow for follows in another one below, each with the first column."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Shown

    console, heading = Console(), escape(printable(title))
    header, cells = [printable(head) for head in table.header], [list(map(printable, line)) for line in table.cells()]
    if not console.is_terminal:
        console.width = max(console.width, 200)  # nothing is folded in a file
    # Of a heading its longest word: rich left alone takes from the middle of words, and from numbers.
    needed = [max(map(len, [*head.split(), *(line[j] for line in cells)])) for j, head in enumerate(header)]
    widths = [min(width, console.width // 2) + 3 for width in needed]
    kept = [j for j in range(1, len(header)) if any(line[j] for line in cells)]
    sheets: list[list[int]] = [[]]
    for j in kept:
        if sheets[-1] and 2 + widths[0] + sum(widths[k] for k in sheets[-1]) + widths[j] > console.width:
            sheets.append([])
        sheets[-1].append(j)
    for n, sheet in enumerate(sheets):
        shown = Shown(title=heading if n == 0 else None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
        for j in [0, *sheet]:
            justify: Literal["left", "right"] = "right" if table.numeric(j) else "left"
            shown.add_column(escape(header[j]), justify=justify, overflow="fold", width=widths[j] - 3)
        for i, line in enumerate(cells):
            shown.add_row(
                *(f"[bold]{escape(line[j])}[/]" if (i, j) in table.bold else escape(line[j]) for j in [0, *sheet])
            )
        console.print(shown)
    if table.note:
        console.print(escape(printable(table.note)), style="dim", highlight=False)


def print_verdicts(baseline: Group, table: Table) -> None:
    """Print a table of verdicts, each measure under a heading with the baseline's mean."""
    measure, heads = "", set()
    lines: list[list[Any]] = []
    for line in table.lines:
        if line[0] != measure:
            measure = line[0]
            heads.add((len(lines), 0))
            lines.append([measure, f"{baseline.label}: {spell(line[1])}", "", ""])
        said = "not shown" if line[-1] == NOTHING_SHOWN else line[-1]
        lines.append([f"  {line[2]}", *line[3:-1], said])
    print_table(Table(table.header[2:], lines, table.note, frozenset(heads)), title=f"against {baseline.label}")
