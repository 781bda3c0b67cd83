"""What is judged: the evaluation folders of runs, their texts, and that they answer the same prompts.

What is missing, or is something else, raises a UserError that names it and what there is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.runs.records import json_objects

EXAMPLES = "examples.jsonl"
Example = dict[str, Any]  # a line of examples.jsonl


def evaluation_folders(folder: Path, *, name: str | None, key: str) -> dict[str, Path]:
    """The evaluation folders that a directory means, by suite ("" for an evaluation of one set).

    Args:
        folder: an evaluation folder, or a run directory with some in eval/.
        name: which of a run's evaluations; None: the newest.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    if suites := _suites(folder):
        return suites
    found = {child.name: suites for child in folder.glob("eval/*") if (suites := _suites(child))}
    if not found:
        raise UserError(f"{key}={folder}: holds no evaluation; make one with kdrun evaluate run={folder}")
    if name is None:
        return max(found.values(), key=lambda suites: max(_written(path) for path in suites.values()))
    if name not in found:
        raise UserError(f"eval={name}: {folder} has no such evaluation (there are {', '.join(sorted(found))})")
    return found[name]


def _suites(folder: Path) -> dict[str, Path]:
    if (folder / EXAMPLES).exists():
        return {"": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{EXAMPLES}"))}


def _written(folder: Path) -> int:
    return (folder / EXAMPLES).stat().st_mtime_ns


def read_examples(folder: Path) -> list[Example]:
    """The examples of an evaluation, as it wrote them."""
    path = folder / EXAMPLES
    rows = json_objects(path)
    if not rows or not all(isinstance(row.get("instruction"), str) for row in rows):
        raise UserError(f"{path}: is not the examples of an evaluation; make it again with kdrun evaluate")
    return rows


def text_of(row: Example, decoding: str, *, folder: Path) -> str:
    """The text of one decoding (greedy, seed10, ...)."""
    try:
        return str(row[decoding]["text"])
    except (KeyError, TypeError):
        there = ", ".join(decodings_of(row)) or "none"
        raise UserError(f"decoding={decoding}: {folder} has no such texts (there are: {there})") from None


def decodings_of(row: Example) -> list[str]:
    """The decodings that a row has texts of."""
    return [name for name, value in row.items() if isinstance(value, dict) and "text" in value]


def samples_of(row: Example, *, folder: Path) -> list[str]:
    """The texts of every seed: at least two, for one has no diversity."""
    names = [name for name in decodings_of(row) if name.startswith("seed")]
    if len(names) < 2:
        raise UserError(
            f"scores=diversity: needs at least two samples of a prompt and {folder} has {len(names)}; "
            "evaluate with eval.seeds=[10,20,30], or type scores=quality"
        )
    return [str(row[name]["text"]) for name in names]


def check_same_prompts(examples: dict[Path, list[Example]]) -> None:
    """Check that evaluations answer the same prompts in the same order, so that their scores can be compared."""
    (first, rows), *others = examples.items()
    for folder, other in others:
        if len(rows) != len(other):
            raise UserError(f"runs: {first} has {len(rows)} examples and {folder} {len(other)}; judge them apart")
        for i, (one, two) in enumerate(zip(rows, other, strict=True)):
            if any(one.get(part) != two.get(part) for part in ("instruction", "input")):
                raise UserError(f"runs: example {i} of {first} and of {folder} are different prompts; judge them apart")


def choose(num_rows: int, num_examples: int | None, *, seed: int) -> list[int]:
    """The indices of a random choice without repetition, in order; all of them for None. Equal for equal arguments."""
    if num_examples is None or num_examples >= num_rows:
        return list(range(num_rows))
    return sorted(random.Random(seed).sample(range(num_rows), num_examples))


def mean_words(texts: Sequence[str]) -> float:
    """Mean length in words: judges favour long texts, so lengths stand beside every verdict."""
    return sum(len(text.split()) for text in texts) / len(texts)
