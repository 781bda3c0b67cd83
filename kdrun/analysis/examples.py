"""What an evaluation stored of each example, as numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.runs.records import json_objects, read_json

HARNESS = "harness.jsonl"


@lru_cache(maxsize=1024)
def read_measures(folder: Path) -> dict[str, np.ndarray]:
    """Measure -> one value an example (NaN: it has none), named as in summary.json.

    fkl, nll, ...; greedy/METRIC; sample/METRIC: the mean over the decoding seeds; judge/JUDGE/quality or win. What is
    true or false counts 100 or 0. harness/TASK/METRIC: one value an example of that task.

    Raises:
        UserError: when a line of examples.jsonl, or of a judge's, cannot be read.
    """
    lines = json_objects(folder / "examples.jsonl")
    columns: dict[str, list[list[float]]] = {}
    for i, line in enumerate(lines):
        for name, value in _measures(line):
            column = columns.setdefault(name, [])
            column += [[] for _ in range(i + 1 - len(column))]
            column[i].append(value)
    values = {}
    for name, column in columns.items():
        column += [[] for _ in range(len(lines) - len(column))]
        values[name] = np.array([np.mean(found) if found else np.nan for found in column])
    for path in sorted(folder.glob("judge/*/examples.jsonl")):
        for line in json_objects(path):
            for metric in line.keys() & {"quality", "diversity", "win"}:
                name = f"judge/{path.parent.name}/{metric}"
                if line[metric] is not None:
                    values.setdefault(name, np.full(len(lines), np.nan))[line["index"]] = line[metric]
    return values | {name: np.array(column) for name, column in _harness_measures(folder).items()}


def _harness_measures(folder: Path) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for line in json_objects(folder / HARNESS):
        part = f"_{line['filter']}" if "filter" in line else ""
        for metric, value in line.items():
            if isinstance(value, float):
                columns.setdefault(f"harness/{line['task']}/{metric}{part}", []).append(value)
    return columns


@lru_cache(maxsize=1024)
def harness_documents(folder: Path) -> dict[str, list[str]]:
    """Task -> the hashes of its examples, in order."""
    documents: dict[str, list[str]] = {}
    for line in json_objects(folder / HARNESS):
        documents.setdefault(line["task"], []).append(line["doc_sha256"])
    return documents


def fingerprint(folder: Path) -> str | None:
    """The fingerprint of the rows that an evaluation looked at; None when it tells none."""
    value = _protocol(folder).get("fingerprint")
    return None if value is None else str(value)


def protocol(folder: Path) -> dict[str, Any]:
    """What two evaluations must share for their numbers to compare: the rows, and how texts were drawn."""
    content = _protocol(folder)
    settings = content.get("settings", {})
    decoding = {key: settings.get(key) for key in DECODING}
    return {"fingerprint": content.get("fingerprint"), **decoding}


def judge_protocol(folder: Path, judge: str) -> dict[str, Any]:
    """What two judgings of one name must share: how texts were drawn, judge, prompts, what stood beside them."""
    path = folder / "judge" / judge / "protocol.json"
    content = read_json(path, key=str(path)) if path.exists() else {}
    return {**protocol(folder), **{key: content.get(key) for key in ("model", "prompts", "against", "decoding")}}


DECODING = ("greedy", "seeds", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size",
            "max_new_tokens", "bertscore_model", "bertscore_layer", "bertscore_baseline", "bartscore_model",
            "diversity_words")  # fmt: skip


def _protocol(folder: Path) -> dict[str, Any]:
    path = folder / "protocol.json"
    return read_json(path, key=str(path)) if path.exists() else {}


def _measures(line: dict[str, Any]) -> list[tuple[str, float]]:
    found = [(name, float(value)) for name, value in line.items() if _is_number(value)]
    for decoding, scores in line.items():
        if isinstance(scores, dict):
            kind = "sample" if decoding.startswith("seed") else decoding
            numbers = ((metric, value) for metric, value in scores.items() if _is_number(value))
            found += [(f"{kind}/{m}", 100.0 * v if isinstance(v, bool) else float(v)) for m, v in numbers]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
