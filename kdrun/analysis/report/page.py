"""The report put together: one HTML file with everything in it, and a folder of figures and tables for papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.analysis.comparison import Row, write_csv
from kdrun.analysis.figures import Plot, as_svg, key_sample, write_figure
from kdrun.analysis.report import facts, plots
from kdrun.analysis.report.generations import side_by_side
from kdrun.analysis.seeds import Group
from kdrun.analysis.tables import (
    Judged,
    Table,
    cost_table,
    main_headings,
    main_table,
    verdict_table,
    write_verdicts,
)
from kdrun.runs.directory import write_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Findings:
    """What a report is about: groups of runs, the one they are judged against, the verdicts, and notes on both."""

    groups: Sequence[Group]
    baseline: Group | None
    judged: Judged
    notes: Sequence[str]

    @property
    def rows(self) -> list[Row]:
        """Every run."""
        return [row for group in self.groups for row in group.rows]


def write_report(findings: Findings, path: Path, figures: Path, *, title: str | None = None) -> dict[str, Table]:
    """The tables of the page, which is written, and into the folder `figures` each figure as PNG, SVG and CSV, each
    table as CSV, and the main table as LaTeX and Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    groups, baseline, judged = findings.groups, findings.baseline, findings.judged
    headings = main_headings([name for group in groups for name in group.metrics])
    look = plots.looks(groups)
    main, more = plots.curve_plots(groups, look)
    drawn = {
        "verdicts": plots.verdict_plots(judged, headings, look, baseline.label) if baseline else [],
        "settings": plots.setting_plots(groups, headings),
        "curves": main,
        "more_curves": more,
        "costs": plots.cost_plots(groups, headings, look),
    }
    tables = {"main": main_table(groups, baseline), "cost": cost_table(groups)}
    if baseline:
        tables["verdicts"] = verdict_table(baseline, judged, headings)
    records = facts.read_records(findings.rows)
    differ, configs = facts.configs(findings.rows)
    made_with, tables["runs"] = facts.provenance(findings.rows, records)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html").render(
        title=title or facts.title_of(groups),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        look=look,
        unfinished={group.label: group.status for group in groups if group.status != "done"},
        question=facts.question(groups, records, headings),
        baseline=baseline.label if baseline else None,
        answers=facts.answer(judged, headings),
        cautions=[*facts.cautions(groups, records), *findings.notes],
        tables=tables,
        generations=side_by_side(groups),
        differ=differ,
        configs=configs,
        made_with=made_with,
        figures=figures.name,
        # What is written by us, not by a run, and is markup already.
        svg=lambda plot: Markup(as_svg(plot)),
        sample=lambda number, place: Markup(key_sample(number, prefix=place)),
        **drawn,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    _write_files(findings, tables, _flat(drawn), figures)
    return tables


def _write_files(findings: Findings, tables: dict[str, Table], drawn: Sequence[Plot], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for plot in drawn:
        write_figure(plot, folder)
    for name, table in tables.items():
        write_text(folder / f"table-{name}.csv", table.as_csv())
    write_text(folder / "table-main.tex", tables["main"].as_latex())
    write_text(folder / "table-main.md", tables["main"].as_markdown())
    write_csv(folder / "table-every-metric.csv", findings.rows)
    if findings.baseline:
        write_verdicts(folder / "table-every-verdict.csv", [(findings.baseline, findings.judged)])


def _flat(found: Any) -> list[Plot]:
    if isinstance(found, Plot):
        return [found]
    return [plot for each in (found.values() if isinstance(found, dict) else found) for plot in _flat(each)]
