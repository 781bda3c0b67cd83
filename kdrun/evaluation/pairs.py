"""The check that every score begins with: one list of references for each prediction."""

from collections.abc import Sequence


def check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless predictions and references match one to one.

    Published evaluation code zips the two lists to the shorter one, so that a missing row goes unseen. A bare string in
    the place of a list of references would be read as one reference a character.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of references")
    for i, of_one in enumerate(references):
        if isinstance(of_one, str):
            raise ValueError(f"references[{i}] is a string: it must be a list of references, if only of one")
        if len(of_one) == 0:
            raise ValueError(f"references[{i}] is empty: each prediction needs at least one reference")


def stripped_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[tuple[str, str]]]:
    """Each prediction beside every one of its references, white space at their ends left out; errors as above."""
    check_pairs(predictions, references)
    return [
        [(prediction.strip(), reference.strip()) for reference in of_one]
        for prediction, of_one in zip(predictions, references, strict=True)
    ]
