"""What the runs wrote, beside each other and beside the references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.analysis.examples import fingerprint
from kdrun.analysis.seeds import Group
from kdrun.runs.records import json_objects

FIXED, DIFFERING = 3, 3


@dataclass(frozen=True)
class Text:
    """What one run wrote for an example; score is ROUGE-L, 0 to 100."""

    run: str
    text: str
    score: float | None


@dataclass(frozen=True)
class Example:
    """One example; `texts` holds a tuple a group, one text a seed."""

    index: int
    why: str
    instruction: str
    input: str
    references: list[str]
    texts: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True)
class Generations:
    """Chosen examples of one evaluation, the decoding shown (greedy, or seedN), and the runs that are left out."""

    evaluation: str
    decoding: str
    examples: list[Example]
    left_out: list[str]


def side_by_side(groups: Sequence[Group]) -> Generations | None:
    """Examples of the evaluation that most runs have on the same rows; None when no run has texts.

    Three are chosen by position alone (first, one third, two thirds), three by the spread of ROUGE-L between groups.
    """
    found: dict[tuple[str, str | None], list[tuple[Group, str, Path]]] = {}
    for group in groups:
        for row in group.rows:
            for name, folder in row.evaluations.items():
                if (folder / "examples.jsonl").exists():
                    found.setdefault((name, fingerprint(folder)), []).append((group, row.label, folder))
    if not found:
        return None
    (name, _), members = max(found.items(), key=lambda item: len(item[1]))
    lines = {folder: json_objects(folder / "examples.jsonl") for _, _, folder in members}
    decodings = Counter(key for each in lines.values() if each for key, value in each[0].items() if _is_text(value))
    if not decodings:
        return None
    decoding = max(decodings, key=lambda key: (decodings[key], key == "greedy"))
    members = [one for one in members if lines[one[2]] and decoding in lines[one[2]][0]]
    shown = {label for _, label, _ in members}
    first = lines[members[0][2]]
    examples = []
    scores = [[line[decoding].get("rouge_l", 0.0) for line in lines[folder]] for _, _, folder in members]
    for index, why in _chosen(len(first), scores):
        texts: dict[str, list[Text]] = {}
        for group, label, folder in members:
            scored = lines[folder][index][decoding]
            texts.setdefault(group.label, []).append(Text(label, scored["text"], scored.get("rouge_l")))
        line = first[index]
        examples.append(Example(index, why, line.get("instruction", ""), line.get("input", ""),
                                line.get("references", []), tuple(map(tuple, texts.values()))))  # fmt: skip
    left_out = [row.label for group in groups for row in group.rows if row.label not in shown]
    return Generations(name, decoding, examples, left_out)


def _chosen(count: int, scores: Sequence[Sequence[float]]) -> list[tuple[int, str]]:
    """(index, reason) of the examples to show."""
    fixed = dict.fromkeys(count * i // FIXED for i in range(FIXED) if count)
    spread = [max(column) - min(column) for column in zip(*scores, strict=True)]
    by_spread = sorted(range(count), key=lambda i: (-spread[i], i))
    differing = [i for i in by_spread if i not in fixed and spread[i] > 0][:DIFFERING]
    return [(i, "by position") for i in fixed] + [(i, "runs differ most") for i in differing]


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and "text" in value
