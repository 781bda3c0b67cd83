"""kdrun report: one page about runs, from their directories alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun.analysis.anchors import with_teacher_and_sft
from kdrun.analysis.online import PREFIX
from kdrun.analysis.report.page import Findings, write_report
from kdrun.analysis.seeds import group_by_seed
from kdrun.analysis.tables import Table
from kdrun.analysis.verdicts import find_baseline, mixed_examples, unpaired
from kdrun.commands.compare import judge, read_sources
from kdrun.errors import UserError
from kdrun.runs.tracker import Tracker


def report(
    sources: Sequence[str | Path],
    output: Path,
    *,
    baseline: str | None = None,
    figures: Path | None = None,
    title: str | None = None,
    project: str | None = None,
) -> None:
    """Write the page `output`, and figures and tables into `figures` (default: the page's name with _files).

    Args:
        project: of W&B, where the same tables and figures are shown too; None: nowhere.

    Raises:
        UserError: when a folder is missing or holds no run, or something lies where the report would be written.
    """
    if online := next((source for source in sources if str(source).startswith(PREFIX)), None):
        raise UserError(
            f"{online}: a report reads run directories (W&B holds no texts or configs); type: kdrun compare"
        )
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {output}: must end in .html; type: -o {output.with_suffix('.html')}")
    if output.exists():
        raise UserError(f"--output {output}: the file exists; type: -o {_free(output)}, or remove it first")
    figures = figures or output.with_name(f"{output.stem}_files")
    if figures.exists() and not (figures.is_dir() and not any(figures.iterdir())):
        raise UserError(f"--figures {figures}: something is there already; type: --figures {_free(figures)}")
    rows, hints = with_teacher_and_sft(read_sources(sources)[0])
    groups = group_by_seed(rows)
    against = find_baseline(groups, baseline) if baseline is not None else None
    judged = judge(groups, against) if against else []
    notes = [*mixed_examples(groups), *hints]
    notes += [line for group, _ in judged for line in unpaired(group, against)] if against else []
    print(f"drawing {len(rows)} runs in {len(groups)} groups ...", flush=True)  # some 30 s for 42 runs
    tables = write_report(Findings(groups, against, judged, list(dict.fromkeys(notes))), output, figures, title=title)
    if project is not None:
        _mirror(project, output.stem, tables, figures)
    print(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB) and {figures}/")


def _mirror(project: str, name: str, tables: Mapping[str, Table], folder: Path) -> None:
    """The tables and figures as a run of W&B, whose files lie in `folder`/wandb when it is offline."""
    tracker = Tracker(
        "auto", directory=folder, project=project, entity=None, name=name, group=None, job_type="report", tags=[],
        config={},
    )  # fmt: skip
    tracker.report(
        {key: (table.header, table.cells()) for key, table in tables.items()},
        {path.stem: path for path in sorted(folder.glob("*.png"))},
    )
    tracker.finish({})


def _free(path: Path) -> Path:
    """A name beside the path that is not taken: report-2.html."""
    names = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 10_000))
    return next(name for name in names if not name.exists())
