"""kdrun study: claims of the literature, each with its source, what was measured here, and a verdict."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kdrun.commands.assembly import cpu_threads, relative
from kdrun.config import StudyConfig
from kdrun.config.study import HeadtailStudy
from kdrun.errors import UserError
from kdrun.runs.directory import RunDirectory, write_json, write_text
from kdrun.runs.progress import progress
from kdrun.runs.provenance import versions

if TYPE_CHECKING:
    from kdrun.studies.findings import Findings, Table

log = logging.getLogger(__name__)


def study(config: StudyConfig, directory: Path, *, overrides: Sequence[str]) -> float:
    """Run a study in `directory`: findings.json, claims.md, tables/, figures/. Returns how many proven claims fail.

    Raises:
        SystemExit: with 1, when one does and the config is strict; the run itself is done.
    """
    run = RunDirectory.start(
        directory,
        command="study",
        config=config.model_dump(mode="json"),
        overrides=overrides,
        extra={"name": config.name},
    )
    with run.recorded():
        failed = [claim.key for claim in _run(config, run.path).failed_proofs]
    if failed and config.strict:
        log.error("%s: proven, and not so here: %s", config.name, ", ".join(failed))
        raise SystemExit(1)
    return float(len(failed))


def check_study(config: StudyConfig) -> None:
    """What the config alone cannot say: the runs to look at are there and can be compared.

    Raises:
        UserError: naming the key.
    """
    if not isinstance(config.study, HeadtailStudy) or config.study.runs is None:
        return
    if not Path(config.study.runs).is_dir():
        raise UserError(f"study.runs={config.study.runs}: no such folder; give that of a sweep, or null to make one")
    from kdrun.studies.headtail import read_runs

    read_runs(Path(config.study.runs), part=config.study.part)


def _run(config: StudyConfig, folder: Path) -> Findings:
    from kdrun.studies.findings import as_json, as_markdown, as_text

    values = config.study.model_dump()
    module = import_module(f"kdrun.studies.{values.pop('name')}")
    with ExitStack() as stack:
        # Small tensors on several threads mostly wait: `toy` took 145 s on two, 28 s on one.
        stack.enter_context(cpu_threads(1))

        def begin(total: int) -> Callable[..., None]:
            return stack.enter_context(progress(config.name, total))

        findings: Findings = module.study(**values, begin=begin)
    write_json(
        folder / "findings.json", {"study": config.study.name, **as_json(findings), "versions": versions(("torch",))}
    )
    write_text(folder / "claims.md", as_markdown(findings))
    _write_tables(findings.tables, folder / "tables")
    _draw(findings, folder / "figures", name=config.name)
    print(as_text(findings, width=min(shutil.get_terminal_size((100, 24)).columns, 110)))
    print(relative(folder))
    return findings


def _write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _draw(findings: Findings, folder: Path, *, name: str) -> None:
    from kdrun.studies.drawing import write_animation, write_picture

    with progress(f"{name} pictures", len(findings.pictures) + len(findings.animations)) as advance:
        for picture in findings.pictures:
            write_picture(picture, folder)
            advance()
        for animation in findings.animations:
            write_animation(animation, folder)
            advance()
