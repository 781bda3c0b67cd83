"""From answers to numbers, with a denominator beside each: what was judged, what could not be read, what failed."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.evaluation.judge.answers import parse_choice, parse_score
from kdrun.evaluation.judge.questions import JudgedSet, Question
from kdrun.evaluation.judge.subjects import mean_words

Verdict = float | str | None
WINS = {"win": 1.0, "loss": 0.0, "tie": 0.5, "inconsistent": 0.5}


def read_verdict(question: Question, answer: str) -> Verdict:
    """What an answer says to its question: a score, or "A", "B", "tie"; None when it cannot be read."""
    return parse_choice(answer) if question.task == "pairwise" else parse_score(answer)


def outcome(first: str, second: str) -> str:
    """win, loss or tie of the judged text, when both orders agree on it; inconsistent when they do not.

    Args:
        first: the choice when the judged text stands first (order AB).
        second: the choice when it stands second (order BA).
    """
    agreed = {("A", "B"): "win", ("B", "A"): "loss", ("tie", "tie"): "tie"}
    return agreed.get((first, second), "inconsistent")


def tally(judged: JudgedSet, answers: Mapping[Question, str | None]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of one evaluation, and one row an example: {"index", "quality", "diversity", "outcome", "win"}.

    Of each task, judged + parse_failures + errors = num_examples. An example without a verdict has none in its row; a
    pair needs both orders. win is 1, 0.5 or 0, a tie or an inconsistency 0.5; win_rate is its mean.

    Args:
        answers: the text for each question, None where the request failed.
    """
    rows: dict[int, dict[str, Any]] = {i: {"index": i} for i in judged.indices}
    asked: dict[str, dict[int, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for question in judged.questions:
        asked[question.task][question.index].append(question)
    summary: dict[str, Any] = {"num_examples": len(judged.indices)}
    for task, by_index in asked.items():
        failures: Counter[str] = Counter()
        for i, questions in by_index.items():
            said = [answers[question] for question in questions]
            verdicts = [
                read_verdict(question, text) for question, text in zip(questions, said, strict=True) if text is not None
            ]
            if None in said:
                failures["errors"] += 1
            elif None in verdicts:
                failures["parse_failures"] += 1
            elif task == "pairwise":
                decided = outcome(*map(str, verdicts))
                rows[i] |= {"outcome": decided, "win": WINS[decided]}
            else:
                rows[i][task] = verdicts[0]
        found = list(rows.values())
        summary |= _pairs(found) if task == "pairwise" else {task: _mean(found, task)}
        summary[f"{task}_judged"] = len(by_index) - failures.total()
        summary |= {f"{task}_{kind}": failures[kind] for kind in ("parse_failures", "errors")}
    summary["words"] = mean_words(judged.texts)
    if judged.others:
        summary["words_against"] = mean_words(judged.others)
    return summary, list(rows.values())


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return statistics.fmean(values) if values else None


def _pairs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = Counter(row["outcome"] for row in rows if "outcome" in row)
    named = {"wins": "win", "losses": "loss", "ties": "tie", "inconsistent": "inconsistent"}
    return {"win_rate": _mean(rows, "win")} | {name: counts[kind] for name, kind in named.items()}
