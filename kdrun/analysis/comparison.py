"""Runs as rows: their settings with flat keys, their final metrics, and where their evaluations lie."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdrun.analysis.costs import mean_costs
from kdrun.analysis.examples import read_if_there
from kdrun.runs.directory import RunDirectory, find_runs, flatten
from kdrun.runs.records import read_json

# Facts of the machine, the place or the mirror, not of the experiment.
NOT_SETTINGS = ("track.", "resume", "evaluate", "name", "eval.")


@dataclass(frozen=True)
class Row:
    """One run: where it is, how it ended, its settings and metrics with flat keys.

    evaluations: name (NAME or NAME/SUITE) -> folder with examples.jsonl; metrics are called NAME/SUITE/METRIC.
    """

    folder: Path
    label: str
    status: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    evaluations: dict[str, Path] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """teacher, or student."""
        return "teacher" if self.settings.get("role") == "teacher" else "student"

    @property
    def random_init(self) -> bool:
        """Whether random weights stand in the place of its checkpoints: its numbers say nothing of a method."""
        return self.settings.get("pair.random_init") is True

    @property
    def fine_tuned(self) -> bool:
        """Whether this is a student trained on the data alone (loss=sft)."""
        return self.role == "student" and self.settings.get("loss.name") == "sft"


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """A row for every run at or below the folders, each run once; its newest evaluation of each name is merged in."""
    runs = {run.path.resolve(): run for folder in folders for run in find_runs(folder)}
    return with_distinct_labels([read_row(run) for run in runs.values() if run.record.get("command") in COMPARED])


COMPARED = ("train", "evaluate")  # a benchmark's or a judge's directory holds no model's result


def with_distinct_labels(rows: Sequence[Row]) -> list[Row]:
    """Rows of one name (the cells of a sweep) get the settings that differ behind it: akl 0.3, akl 0.5 seed 1."""
    names = [row.label for row in rows]
    of_name = {name: [row for row in rows if row.label == name] for name in names}
    keys = {name: [key for key in differing_settings(of_name[name]) if key != "seed"] for name in of_name}
    rows = [
        replace(row, label=" ".join([row.label, *(str(row.settings[k]) for k in keys[row.label] if k in row.settings)]))
        for row in rows
    ]
    names = [row.label for row in rows]
    return [replace(row, label=row.label + _seed(row)) if names.count(row.label) > 1 else row for row in rows]


def without_seed(row: Row) -> str:
    """The row's label without the seed that told it from others."""
    return row.label.removesuffix(_seed(row))


def _seed(row: Row) -> str:
    return f" seed {row.settings['seed']}" if "seed" in row.settings else ""


def read_row(run: RunDirectory) -> Row:
    """The row of one run directory (of kdrun train or kdrun evaluate)."""
    config = run.config()
    if run.record.get("command") == "evaluate":
        config = {k: v for k, v in config.items() if v is not None}
        metrics: dict[str, float] = {}
    else:  # what an evaluation found is read from its own folder
        metrics = {name: value for name, value in _numbers(run.path).items() if not name.startswith("eval/")}
        metrics |= mean_costs(run.path)
    found = evaluations(run)
    for name, folder in found.items():
        metrics |= evaluated(name, folder)
    label = str(run.record.get("name") or run.path.name)
    return Row(run.path, label, str(run.record.get("status")), flatten(config), metrics, found)


def evaluations(run: RunDirectory) -> dict[str, Path]:
    """The finished evaluations of a run's own model: name -> the newest folder of that name, the oldest name first.

    A suite of an evaluation comes after it as NAME/SUITE. An evaluate run is its own only evaluation.
    """
    if run.record.get("command") == "evaluate":
        newest = {str(run.record.get("name")): run.path} if (run.path / "summary.json").exists() else {}
    else:
        newest = _newest(run.path, of="own")
    return _with_suites(newest)


def teacher_evaluations(run: Path) -> dict[str, Path]:
    """The finished evaluations of a run's teacher, which lie in the run's folder (kdrun evaluate run=DIR
    role=teacher)."""
    return _with_suites(_newest(run, of="teacher"))


def evaluated(name: str, folder: Path) -> dict[str, float]:
    """The metrics of one evaluation and of its judges: NAME/METRIC and NAME/judge/JUDGE/METRIC."""
    metrics = {f"{name}/{metric}": value for metric, value in _numbers(folder).items()}
    for judge in sorted(folder.glob("judge/*/summary.json")):
        numbers = _numbers(judge.parent)
        metrics |= {f"{name}/judge/{judge.parent.name}/{metric}": value for metric, value in numbers.items()}
    return metrics


def _newest(run: Path, *, of: str) -> dict[str, Path]:
    found = [folder for folder in run.glob("eval/*") if (folder / "summary.json").exists() and _whose(folder) == of]
    ordered = sorted(found, key=lambda path: path.stat().st_mtime)
    return {re.sub(r"-\d+$", "", folder.name): folder for folder in ordered}


def _with_suites(newest: dict[str, Path]) -> dict[str, Path]:
    found = {}
    for name, folder in newest.items():
        found[name] = folder
        for suite in sorted(folder.glob("*/summary.json")):
            found[f"{name}/{suite.parent.name}"] = suite.parent
    return found


def _numbers(folder: Path) -> dict[str, float]:
    content = read_if_there(folder / "summary.json")
    return {name: value for name, value in content.items() if isinstance(value, int | float)}


def _whose(folder: Path) -> str | None:
    """own, teacher (an evaluation of a run's teacher lies in the run's folder), or None: not finished."""
    record = folder / "run.json"
    content = read_json(record, key=str(folder)) if record.exists() else {"status": "done"}
    if content.get("status") != "done":
        return None
    return "teacher" if content.get("role") == "teacher" else "own"


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """The keys, in the config's order, whose values differ among the rows that have them."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    keys = [key for key in keys if not key.startswith(NOT_SETTINGS)]
    students = [row for row in rows if row.role == "student"]
    rows = students or rows  # a teacher is trained in its own way; that is not what the students differ in
    values = {key: {repr(row.settings[key]) for row in rows if key in row.settings} for key in keys}
    return [key for key in keys if len(values[key]) > 1]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every metric and every setting that differs, one line a run, with the run's folder last."""
    settings = differing_settings(rows)
    if any(row.random_init for row in rows) and "pair.random_init" not in settings:
        settings.append("pair.random_init")
    metrics = sorted({name for row in rows for name in row.metrics})
    lines: list[list[Any]] = [["run", "status", *settings, *metrics, "folder"]]
    for row in rows:
        values = [row.settings.get(key, "") for key in settings] + [row.metrics.get(name) for name in metrics]
        lines.append([row.label, row.status, *values, row.folder])
    write_sheet(path, lines)


def write_sheet(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    """Write lines of cells, the header first, as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
