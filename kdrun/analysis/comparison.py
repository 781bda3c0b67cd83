"""One table of runs: the settings that differ and the final metrics."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdrun.runs.directory import RunDirectory, find_runs, read_json

# Facts of the machine, the place or the mirror, not of the experiment.
NOT_SETTINGS = ("track.", "resume", "evaluate", "name", "eval.")
# Final metrics in the order of the table: of each evaluation, then of the run.
EVALUATED = {
    "nll": "NLL",
    "fkl": "FKL",
    "rkl": "RKL",
    "top1_agreement": "top-1",
    "greedy/rouge_l": "ROUGE-L greedy",
    "sample/rouge_l": "ROUGE-L sampled",
    "greedy/bertscore_f1": "BERTScore greedy",
    "sample/bertscore_f1": "BERTScore sampled",
}
COSTS = {"train_s": "train s", "train/peak_memory_gib": "peak GiB"}


@dataclass(frozen=True)
class Row:
    """One run: where it is, how it ended, its settings and metrics with flat keys."""

    folder: Path
    label: str
    status: str
    settings: dict[str, Any]
    metrics: dict[str, float]


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """A row for every run at or below the folders, each run once; its newest evaluation of each name is merged in."""
    runs = {run.path.resolve(): run for folder in folders for run in find_runs(folder)}
    return with_distinct_labels([read_row(run) for run in runs.values()])


def with_distinct_labels(rows: Sequence[Row]) -> list[Row]:
    """Rows of one name (the cells of a sweep) get the settings that differ behind it: akl 0.3, akl 0.5."""
    names = [row.label for row in rows]
    if len(set(names)) == len(names):
        return list(rows)
    keys = differing_settings(rows)
    return [
        replace(row, label=" ".join([row.label, *(str(row.settings[key]) for key in keys if key in row.settings)]))
        if names.count(row.label) > 1
        else row
        for row in rows
    ]


def read_row(run: RunDirectory) -> Row:
    """The row of one run directory (of kdrun train or kdrun evaluate)."""
    config = run.config()
    if run.record.get("command") == "evaluate":
        config = {k: v for k, v in config.items() if v is not None}
        metrics: dict[str, float] = {}
    else:  # what an evaluation found is read from its own folder
        metrics = {name: value for name, value in _numbers(run.path).items() if not name.startswith("eval/")}
    for name, folder in evaluations(run).items():
        metrics |= {f"{name}/{metric}": value for metric, value in _numbers(folder).items()}
    label = str(run.record.get("name") or run.path.name)
    return Row(run.path, label, str(run.record.get("status")), flatten(config), metrics)


def evaluations(run: RunDirectory) -> dict[str, Path]:
    """The finished evaluations of a run's own model: name -> the newest folder of that name, the oldest name first.

    An evaluate run is its own only evaluation.
    """
    if run.record.get("command") == "evaluate":
        return {str(run.record.get("name")): run.path} if (run.path / "summary.json").exists() else {}
    found = [folder for folder in run.path.glob("eval/*") if (folder / "summary.json").exists()]
    ordered = sorted((f for f in found if not _of_another_model(f)), key=lambda path: path.stat().st_mtime)
    return {re.sub(r"-\d+$", "", folder.name): folder for folder in ordered}


def _numbers(folder: Path) -> dict[str, float]:
    path = folder / "summary.json"
    content = read_json(path, key=str(path)) if path.exists() else {}
    return {name: value for name, value in content.items() if isinstance(value, int | float)}


def _of_another_model(folder: Path) -> bool:
    """An evaluation of a run's teacher lies in the run's folder, but is not the run's result."""
    record = folder / "run.json"
    if not record.exists():
        return False
    content = read_json(record, key=str(folder))
    return content.get("status") != "done" or content.get("role") == "teacher"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"mu": 0.5}} -> {"loss.mu": 0.5}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """The keys, in the config's order, whose values differ among the rows that have them."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    keys = [key for key in keys if not key.startswith(NOT_SETTINGS)]
    students = [row for row in rows if row.settings.get("role") != "teacher"]
    rows = students or rows  # a teacher is trained in its own way; that is not what the students differ in
    values = {key: {repr(row.settings[key]) for row in rows if key in row.settings} for key in keys}
    return [key for key in keys if len(values[key]) > 1]


def table(rows: Sequence[Row], *, every_metric: bool = False) -> tuple[list[str], list[list[Any]]]:
    """Header and cells: run, status if one is not done, the settings that differ, the metrics that any row has."""
    settings = differing_settings(rows)
    with_status = any(row.status != "done" for row in rows)
    present = {name for row in rows for name in row.metrics}
    headings = dict.fromkeys(sorted(present)) if every_metric else _headings(present)
    names = [name for name in headings if name in present]
    header = ["run", *(["status"] if with_status else []), *settings, *(headings[name] or name for name in names)]
    cells = [
        [
            row.label,
            *([row.status] if with_status else []),
            *(row.settings.get(key, "") for key in settings),
            *(row.metrics.get(name) for name in names),
        ]
        for row in rows
    ]
    return header, cells


def _headings(present: set[str]) -> dict[str, str | None]:
    """The main metrics of every evaluation, with the evaluation's name in the heading when there are several."""
    names = list(dict.fromkeys(name.removesuffix("/nll") for name in sorted(present) if name.endswith("/nll")))
    names = [name for name in names if name != "valid"]
    headings: dict[str, str | None] = {}
    for name in names:
        before = f"{name} " if len(names) > 1 else ""
        headings |= {f"{name}/{metric}": before + heading for metric, heading in EVALUATED.items()}
    return headings | COSTS


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every metric and every setting that differs, one line a run, with the run's folder last."""
    header, cells = table(rows, every_metric=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "folder"])
        writer.writerows([*line, row.folder] for line, row in zip(cells, rows, strict=True))
