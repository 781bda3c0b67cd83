"""Runs against a baseline, example by example: a difference counts only where its interval excludes zero."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdrun.analysis.comparison import Row, evaluations
from kdrun.errors import UserError
from kdrun.runs.directory import RunDirectory, read_json

# What is compared, its heading, and whether more is better.
MEASURES = {
    "fkl": ("FKL", False),
    "greedy": ("ROUGE-L greedy", True),
    "sample": ("ROUGE-L sampled", True),
}
RESAMPLES = 10_000


@dataclass(frozen=True)
class Verdict:
    """Mean difference to the baseline over the same examples, with a 95 % paired bootstrap interval."""

    measure: str
    baseline: float
    difference: float
    low: float
    high: float
    better: bool | None  # None: the interval holds zero

    def __str__(self) -> str:
        said = {True: "better", False: "worse", None: "no difference shown"}[self.better]
        return f"{self.difference:+.3g} [{self.low:+.3g}, {self.high:+.3g}] {said}"


def verdicts(row: Row, baseline: Row) -> list[Verdict]:
    """One verdict a measure that both runs have, in the first evaluation that both have.

    Raises:
        UserError: when the two were evaluated on different examples.
    """
    mine, others = (evaluations(RunDirectory.open(r.folder, key=str(r.folder))) for r in (row, baseline))
    name = next((name for name in mine if name in others), None)
    if name is None:
        return []
    ours, theirs = mine[name], others[name]
    prints = [read_json(folder / "protocol.json", key=str(folder)).get("fingerprint") for folder in (ours, theirs)]
    if prints[0] != prints[1]:
        raise UserError(f"{row.label} and {baseline.label} were evaluated on different examples; they cannot be paired")
    values, reference = read_examples(ours), read_examples(theirs)
    return [
        paired(heading, values[name], reference[name], more_is_better=more)
        for name, (heading, more) in MEASURES.items()
        if name in values and name in reference
    ]


def paired(measure: str, values: np.ndarray, reference: np.ndarray, *, more_is_better: bool) -> Verdict:
    """The mean of values - reference over examples, resampled with a fixed seed."""
    difference = values - reference
    random = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):  # a piece at a time: 500 x examples numbers in memory
        means[start : start + 500] = difference[random.integers(0, len(difference), (500, len(difference)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    better = None if low <= 0 <= high else bool((difference.mean() > 0) == more_is_better)
    return Verdict(measure, float(reference.mean()), float(difference.mean()), float(low), float(high), better)


def read_examples(folder: Path) -> dict[str, np.ndarray]:
    """Per-example values of an evaluation: fkl, and ROUGE-L greedy and sampled (mean over the seeds)."""
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    seeds = [name for name in lines[0] if name.startswith("seed")]
    values = {}
    if "fkl" in lines[0]:
        values["fkl"] = np.array([line["fkl"] for line in lines])
    if "greedy" in lines[0]:
        values["greedy"] = np.array([line["greedy"]["rouge_l"] for line in lines])
    if seeds:
        values["sample"] = np.array([np.mean([line[seed]["rouge_l"] for seed in seeds]) for line in lines])
    return values


def find_baseline(rows: Sequence[Row], name: str) -> Row:
    """The one row of that name.

    Raises:
        UserError: when there is none, or more than one.
    """
    found = [row for row in rows if name in (row.label, row.folder.name)]
    if len(found) != 1:
        names = ", ".join(dict.fromkeys(row.label for row in rows))
        raise UserError(
            f"--baseline {name}: {'no' if not found else 'more than one'} run of that name (there are {names})"
        )
    return found[0]
