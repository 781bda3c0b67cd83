"""How long the texts are, beside their references, one value an example."""

from collections.abc import Sequence
from typing import Any

from kdrun.evaluation.pairs import check_pairs


def length_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, num_tokens: Sequence[int]
) -> dict[str, list[float]]:
    """Return words, tokens, reference_words and length_ratio of each prediction.

    A word is what stands between white space. Of several references the one nearest in words counts, of two equally
    near the shorter (as in BLEU). length_ratio = words / reference_words, where a reference without a word counts as
    one word. Beside short references its mean is far above the ratio of the two means.

    `num_tokens` are the tokens that the model wrote, without EOS. Raises ValueError for lists that do not match.
    """
    check_pairs(predictions, references)
    if len(num_tokens) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions but {len(num_tokens)} numbers of tokens")
    words = [len(prediction.split()) for prediction in predictions]
    nearest = [
        nearest_length(count, [len(reference.split()) for reference in of_one])
        for count, of_one in zip(words, references, strict=True)
    ]
    return {
        "words": [float(count) for count in words],
        "tokens": [float(count) for count in num_tokens],
        "reference_words": [float(count) for count in nearest],
        "length_ratio": [count / max(reference, 1) for count, reference in zip(words, nearest, strict=True)],
    }


def nearest_length(length: int, others: Sequence[int]) -> int:
    """Return the one of the other lengths that is nearest, of two equally near the shorter."""
    return min(others, key=lambda other: (abs(other - length), other))


def length_protocol() -> dict[str, Any]:
    """Return what decides the numbers, for the run record."""
    return {"word": "between white space", "several_references": "nearest in words", "tokens": "without EOS"}
