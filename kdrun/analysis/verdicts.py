"""Groups against a baseline, example by example: a difference counts only where its interval excludes zero."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.analysis.bootstrap import paired_bootstrap
from kdrun.analysis.examples import HARNESS, fingerprint, harness_documents, judge_protocol, protocol, read_measures
from kdrun.analysis.seeds import Group
from kdrun.errors import UserError

# Whether less or more of a measure is better, by the end or the beginning of its name; of others neither is.
LESS = ("nll", "fkl", "rkl", "jsd", "tvd", "head_gap", "tail_gap", "bits_per_byte", "lm_loss")
MORE = ("rouge_", "bertscore_", "bartscore_", "exact_match", "top1_agreement", "quality", "diversity", "win", "acc")
NOTHING_SHOWN = "no difference shown"


@dataclass(frozen=True)
class Verdict:
    """Mean difference to the baseline over the same examples, with a 95 % paired bootstrap interval and its p value.

    measure: a metric's key, NAME/fkl. baseline: the baseline's mean over examples, each counted once; the NLL and
    divergences of a summary count each token once, so they are not quite the same number. better: None where the
    interval holds zero, or where neither more nor less of the measure is better. num_seeds: of the side with fewer;
    with 1 the noise of training is not wholly in the interval.
    """

    measure: str
    baseline: float
    difference: float
    low: float
    high: float
    p: float
    better: bool | None
    num_examples: int
    num_seeds: int

    @property
    def said(self) -> str:
        """better or worse, higher or lower, or no difference shown."""
        if self.low <= 0 <= self.high:
            return NOTHING_SHOWN
        if self.better is None:
            return "higher" if self.difference > 0 else "lower"
        return "better" if self.better else "worse"

    @property
    def interval(self) -> str:
        """The difference and its interval as text: -0.021 [-0.035, -0.007]."""
        digits, size = 3 if abs(self.baseline) < 10 else 2, max(abs(self.low), abs(self.high))
        while 0 < size < 10 ** (1 - digits) and digits < 6:  # two digits of it at least
            digits += 1
        return f"{self.difference:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"

    def __str__(self) -> str:
        return f"{self.interval} {self.said}"


def more_is_better(measure: str) -> bool | None:
    """Whether more of a measure is better; None where neither more nor less is."""
    name = measure.rsplit("/", 1)[-1].removeprefix("topk_")
    return True if name.startswith(MORE) else False if name in LESS else None


def verdicts(group: Group, baseline: Group, *, measures: Collection[str] | None = None) -> list[Verdict]:
    """One verdict for every measure that all runs of both groups have of the same examples, evaluation by evaluation.

    Args:
        measures: metric keys (NAME/fkl); None: every one.
    """
    found = []
    for name in _shared_evaluations(group, baseline):
        ours, theirs = _folders(group, name), _folders(baseline, name)
        folders = [*ours.values(), *theirs.values()]
        if not _same_examples(folders):
            continue  # `unpaired` says so
        tables = {folder: read_measures(folder) for folder in folders}
        of_length: dict[int, list[str]] = {}  # a task of the harness has examples of its own
        for measure, values in tables[folders[0]].items():
            wanted = measures is None or f"{name}/{measure}" in measures
            if wanted and all(measure in table for table in tables.values()) and _same_protocol(measure, folders):
                of_length.setdefault(len(values), []).append(measure)
        for chosen in of_length.values():
            sides = [
                np.array([np.stack([tables[folder][m] for m in chosen], -1) for folder in side.values()])
                for side in (ours, theirs)
            ]
            estimates = paired_bootstrap(*sides, same_seeds=list(ours) == list(theirs))
            for i, (measure, one) in enumerate(zip(chosen, estimates, strict=True)):
                more = more_is_better(measure)
                better = None if one.low <= 0 <= one.high or more is None else (one.difference > 0) == more
                found.append(
                    Verdict(
                        f"{name}/{measure}", float(np.nanmean(sides[1][..., i])), one.difference, one.low, one.high,
                        one.p, better, one.num_examples, min(len(ours), len(theirs)),
                    )
                )  # fmt: skip
    return found


def unpaired(group: Group, baseline: Group) -> list[str]:
    """Sentences that say which evaluations of two groups cannot be paired, and why."""
    pair = f"{group.label} and {baseline.label}"
    names = _shared_evaluations(group, baseline)
    if not names:
        return [f"{pair} have no evaluation of one name with values of each example, so they are not judged"]
    return [
        f"{pair} were evaluated on different examples in {name}; they cannot be paired there"
        for name in names
        if not _same_examples([*_folders(group, name).values(), *_folders(baseline, name).values()])
    ]


def mixed_examples(groups: Sequence[Group]) -> list[str]:
    """Sentences that say which evaluations of one name looked at different examples, or in different ways."""
    said = []
    for name in dict.fromkeys(name for group in groups for name in _names(group)):
        folders = {f: g.label for g in groups for f in _folders(g, name).values()}
        seen: dict[str, list[str]] = {}
        for folder, label in folders.items():
            seen.setdefault(repr(protocol(folder)), []).append(label)
        if len(seen) > 1:
            sides = " | ".join(", ".join(dict.fromkeys(labels)) for labels in seen.values())
            said.append(
                f"{name}: not the same examples or decoding in all runs, so its columns do not compare: {sides}"
            )
    return said


def _shared_evaluations(group: Group, baseline: Group) -> list[str]:
    return [name for name in _names(group) if name in _names(baseline)]


def _names(group: Group) -> list[str]:
    names = dict.fromkeys(name for row in group.rows for name in row.evaluations)
    return [name for name in names if _folders(group, name)]


def _same_examples(folders: Sequence[Path]) -> bool:
    return len({fingerprint(folder) for folder in folders}) == 1


def _same_protocol(measure: str, folders: Sequence[Path]) -> bool:
    """Whether the numbers of a measure were made alike: the documents of a task, the drawing of texts, the judge."""
    kind, _, rest = measure.partition("/")
    facts: list[Any] = [None]
    if kind == "harness":
        facts = [harness_documents(folder).get(rest.split("/")[0]) for folder in folders]
    elif kind == "judge":
        facts = [judge_protocol(folder, rest.split("/")[0]) for folder in folders]
    elif rest or kind == "prompt_self_bleu":  # of texts; what they differ in, `mixed_examples` says
        facts = [protocol(folder) for folder in folders]
    return all(fact == facts[0] for fact in facts)


def _folders(group: Group, name: str) -> dict[str, Path]:
    """Seed -> folder of the runs that have values of each example of the evaluation, in the order of seeds."""
    found = [(repr(row.settings.get("seed")), row.evaluations[name]) for row in group.rows if name in row.evaluations]
    files = ("examples.jsonl", HARNESS)
    return {seed: folder for seed, folder in sorted(found) if any((folder / file).exists() for file in files)}


def find_baseline(groups: Sequence[Group], name: str) -> Group:
    """The one group of that name: its label, a run's label or folder name, or `sft` or `teacher` by what they are.

    Raises:
        UserError: when there is none, or more than one.
    """
    found = [group for group in groups if group.label == name]
    found = found or [g for g in groups if any(name in (row.label, row.folder.name) for row in g.rows)]
    if not found and name in ("sft", "teacher"):
        found = [g for g in groups if (g.rows[0].fine_tuned if name == "sft" else g.role == "teacher")]
    if len(found) != 1:
        names = ", ".join(dict.fromkeys(group.label for group in groups))
        raise UserError(
            f"--baseline {name}: {'no' if not found else 'more than one'} run of that name (there are {names})"
        )
    return found[0]
