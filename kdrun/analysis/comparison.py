"""One table of runs: the settings that differ and the final metrics."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.runs.directory import RunDirectory, find_runs, read_json

# Facts of the machine, the place or the mirror, not of the experiment.
NOT_SETTINGS = ("track.", "resume", "evaluate", "name", "eval.")
# Final metrics in the order of the table, with their headings; an evaluation's own keys come as eval/KEY.
COLUMNS = {
    "eval/nll": "NLL",
    "eval/fkl": "FKL",
    "eval/rkl": "RKL",
    "eval/top1_agreement": "top-1",
    "eval/greedy/rouge_l": "ROUGE-L greedy",
    "eval/sample/rouge_l": "ROUGE-L sampled",
    "eval/greedy/bertscore_f1": "BERTScore greedy",
    "eval/sample/bertscore_f1": "BERTScore sampled",
    "train_s": "train s",
    "train/peak_memory_gib": "peak GiB",
}


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
    return [read_row(run) for run in runs.values()]


def read_row(run: RunDirectory) -> Row:
    """The row of one run directory (of kdrun train or kdrun evaluate)."""
    config = run.config()
    metrics = {name: value for name, value in run.summary().items() if isinstance(value, int | float)}
    if run.record.get("command") == "evaluate":
        metrics = {f"eval/{name}": value for name, value in metrics.items()}
        config = {k: v for k, v in config.items() if v is not None}
    for folder in evaluations(run.path):
        newest = read_json(folder / "summary.json", key=str(folder))
        metrics |= {f"eval/{name}": value for name, value in newest.items() if isinstance(value, int | float)}
    label = str(run.record.get("name") or run.path.name)
    return Row(run.path, label, str(run.record.get("status")), flatten(config), metrics)


def evaluations(run: Path) -> list[Path]:
    """The finished evaluations of a run's own model, oldest first; an evaluate run is its own."""
    if (run / "examples.jsonl").exists():
        return [run]
    found = [folder for folder in run.glob("eval/*") if (folder / "summary.json").exists()]
    return sorted((f for f in found if not _of_another_model(f)), key=lambda path: path.stat().st_mtime)


def newest_evaluation(run: Path) -> Path | None:
    """The last of them."""
    return next(reversed(evaluations(run)), None)


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
    names = list(COLUMNS) if not every_metric else sorted({name for row in rows for name in row.metrics})
    names = [name for name in names if any(name in row.metrics for row in rows)]
    with_status = any(row.status != "done" for row in rows)
    header = ["run", *(["status"] if with_status else []), *settings]
    header += names if every_metric else [COLUMNS[name] for name in names]
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


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every metric and every setting that differs, one line a run, with the run's folder last."""
    header, cells = table(rows, every_metric=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "folder"])
        writer.writerows([*line, row.folder] for line, row in zip(cells, rows, strict=True))
