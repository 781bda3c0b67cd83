"""Run directories with chosen numbers, written as the commands write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.runs.directory import MetricsFile, RunDirectory, write_json


def make_run(
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    name: str | None = None,
    status: str = "done",
    summary: dict[str, float] | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:
    """A training run of a student with loss.name akl, seed 1 and the settings given on top."""
    config: dict[str, Any] = {"role": "student", "seed": 1, "loss": {"name": "akl"}, **(settings or {})}
    run = RunDirectory.start(
        folder, command="train", config=config, overrides=overrides, extra={"name": name or folder.name}
    )
    write_json(folder / "summary.json", {"train_s": 2.5, **(summary or {})})
    file = MetricsFile(folder / "metrics.jsonl")
    for step in (0, 10):
        file.write(step=step, time_s=1.0, **{"valid/fkl": 10.5 - step, "valid/nll": 2.0})
    file.close()
    run.note(status=status)
    return folder


def add_evaluation(folder: Path, lines: list[dict[str, Any]], *, fingerprint: str = "same", **summary: float) -> Path:
    """An evaluation in a folder: its summary is the mean of every number of the lines, and what is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "protocol.json", {"fingerprint": fingerprint, "settings": {"greedy": True}})
    means = {k: float(np.mean([line[k] for line in lines])) for k, v in lines[0].items() if isinstance(v, float)}
    if "greedy" in lines[0]:
        means["greedy/rouge_l"] = float(np.mean([line["greedy"]["rouge_l"] for line in lines]))
    write_json(folder / "summary.json", means | summary)
    return folder


def numbered(values: Any, rouge: Any = None) -> list[dict[str, Any]]:
    """Lines with an nll, an fkl of half of it, and a greedy ROUGE-L, an example a value."""
    rouge = [30.0] * len(values) if rouge is None else rouge
    return [
        {"nll": float(v), "fkl": float(v) / 2, "greedy": {"rouge_l": float(r)}}
        for v, r in zip(values, rouge, strict=True)
    ]
