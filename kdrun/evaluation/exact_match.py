"""Exact match with a reference, as written and normalised, one score an example."""

import string
from collections.abc import Sequence
from typing import Any

from kdrun.evaluation.pairs import check_pairs


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Return exact_match and exact_match_normalised of each prediction: 100 when it equals a reference, else 0.

    exact_match compares the texts with their ends stripped, exact_match_normalised what `normalise` leaves of them.
    Raises ValueError unless there is a list of references for each prediction.
    """
    check_pairs(predictions, references)
    scores: dict[str, list[float]] = {"exact_match": [], "exact_match_normalised": []}
    for prediction, of_one in zip(predictions, references, strict=True):
        for name, form in (("exact_match", str.strip), ("exact_match_normalised", normalise)):
            scores[name].append(100.0 * (form(prediction) in {form(reference) for reference in of_one}))
    return scores


def normalise(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, with single spaces.

    The rule of MiniLLM's rouge_metric.py. SQuAD's drops the articles a, an and the as well; MiniLLM keeps them.
    """
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def exact_match_protocol() -> dict[str, Any]:
    """Return what decides the numbers, for the run record."""
    return {
        "exact_match": "ends stripped",
        "exact_match_normalised": "lower case, no ASCII punctuation, single spaces, articles kept (MiniLLM)",
        "several_references": "maximum",
    }
