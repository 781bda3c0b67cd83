"""What a judge's answer says: a score or a choice, or None where it cannot be told.

First the form that the prompt asks for ([[7]], [[A]]). Without it, a few unmistakable others: the answer is nothing but
the verdict; a label before it (Score: 7, Verdict: A); 7/10; single brackets. Two different verdicts in one answer are
none. Thoughts between <think> and </think> are no part of the answer, and an answer cut off inside them says nothing.
"""

from __future__ import annotations

import re

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_AFTER = r"(?![\d.]*\d)"
_MARKS = r"[\s*_`\"'.]*"  # markdown and punctuation around a lone verdict; no minus sign
_LABEL = r"[\s:=*_]*(?:is|of)?[\s:=*_]*"
_END = r"[^\S\n]*[*_`\"'.\]]*$"  # of the line: "Winner: a tie" does not choose A
_SCORES = (
    rf"\A{_MARKS}{_NUMBER}(?:\s*/\s*10)?{_MARKS}\Z",
    rf"\b(?:score|rating){_LABEL}\[*{_NUMBER}{_AFTER}",
    rf"(?<![\d.]){_NUMBER}\s*/\s*10\b(?!/)",
    rf"\[\s*{_NUMBER}\s*\]",
)
_CHOICE = r"(A|B|C|tie)"
_CHOICES = (
    rf"\A{_MARKS}(?:response[\s_]+)?{_CHOICE}{_MARKS}\Z",
    rf"\b(?:verdict|winner|choice){_LABEL}(?:response[\s_]+)?\[*{_CHOICE}{_END}",
    rf"\[\s*{_CHOICE}\s*\]",
)


def parse_score(answer: str) -> float | None:
    """The score, 1 to 10; None when there is none, when it is out of range, or when there are several."""
    found = {float(value) for value in _verdicts(answer, rf"\[\[\s*{_NUMBER}\s*\]\]", _SCORES)}
    score = found.pop() if len(found) == 1 else None
    return score if score is not None and 1 <= score <= 10 else None


def parse_choice(answer: str) -> str | None:
    """ "A", "B" or "tie" (also written C, as other judges' prompts have it); None when it does not choose."""
    found = {value.lower() for value in _verdicts(answer, rf"\[\[\s*{_CHOICE}\s*\]\]", _CHOICES)}
    return {"a": "A", "b": "B", "c": "tie", "tie": "tie"}[found.pop()] if len(found) == 1 else None


def _verdicts(answer: str, strict: str, tolerant: tuple[str, ...]) -> list[str]:
    said = re.sub(r"<think>.*?(</think>|\Z)", "", answer, flags=re.DOTALL)
    if found := re.findall(strict, said, flags=re.IGNORECASE):
        return found
    return [value for pattern in tolerant for value in re.findall(pattern, said, flags=re.IGNORECASE | re.MULTILINE)]
