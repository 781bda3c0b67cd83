"""What an evaluation stored of each example, as numbers."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.runs.records import json_objects, read_json

HARNESS, PROTOCOL = "harness.jsonl", "protocol.json"


@lru_cache(maxsize=1024)
def read_measures(folder: Path) -> dict[str, np.ndarray]:
    """Measure -> one value an example (NaN: it has none), named as in summary.json.

    fkl, nll, ...; greedy/METRIC; sample/METRIC: the mean over the decoding seeds; judge/JUDGE/quality or win. What is
    true or false counts 100 or 0. harness/TASK/METRIC: one value an example of that task.

    Raises:
        UserError: when a line of examples.jsonl, or of a judge's, cannot be read.
    """
    lines = json_objects(folder / "examples.jsonl")
    values: defaultdict[str, np.ndarray] = defaultdict(lambda: np.full(len(lines), np.nan))
    for i, line in enumerate(lines):
        for name, found in _measures(line).items():
            values[name][i] = np.mean(found)
    for path in sorted(folder.glob("judge/*/examples.jsonl")):
        for line in json_objects(path):
            for metric in line.keys() & {"quality", "diversity", "win"}:
                if line[metric] is not None:
                    values[f"judge/{path.parent.name}/{metric}"][line["index"]] = line[metric]
    return {**values, **{name: np.array(column) for name, column in _harness_measures(folder).items()}}


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


def read_if_there(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is none.

    Raises:
        UserError: when it cannot be read.
    """
    return read_json(path, key=str(path)) if path.exists() else {}


def fingerprint(folder: Path) -> str | None:
    """The fingerprint of the rows that an evaluation looked at; None when it tells none."""
    value = read_if_there(folder / PROTOCOL).get("fingerprint")
    return None if value is None else str(value)


def protocol(folder: Path) -> dict[str, Any]:
    """What two evaluations must share for their numbers to compare: the rows, and how texts were drawn."""
    content = read_if_there(folder / PROTOCOL)
    settings = content.get("settings", {})
    return {"fingerprint": content.get("fingerprint"), **{key: settings.get(key) for key in DECODING}}


def judge_protocol(folder: Path, judge: str) -> dict[str, Any]:
    """What two judgings of one name must share: how texts were drawn, judge, prompts, what stood beside them."""
    content = read_if_there(folder / "judge" / judge / PROTOCOL)
    return {**protocol(folder), **{key: content.get(key) for key in ("model", "prompts", "against", "decoding")}}


DECODING = ("greedy", "seeds", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size",
            "max_new_tokens", "bertscore_model", "bertscore_layer", "bertscore_baseline", "bartscore_model",
            "diversity_words")  # fmt: skip


def _measures(line: dict[str, Any]) -> dict[str, list[float]]:
    """Measure -> its values in a line: one, or one a decoding seed."""
    found = {name: [float(value)] for name, value in line.items() if isinstance(value, int | float)}
    for decoding, scores in line.items():
        if isinstance(scores, dict):
            kind = "sample" if decoding.startswith("seed") else decoding
            for metric, value in scores.items():
                if isinstance(value, int | float):
                    number = 100.0 * value if isinstance(value, bool) else float(value)
                    found.setdefault(f"{kind}/{metric}", []).append(number)
    return found
