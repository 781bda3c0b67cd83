"""The student of tests/training, and what writes with it."""

from typing import Any

from kdrun.data.encoding import EncodedSet
from kdrun.generation.reading import Mixture
from kdrun.generation.sampling import Sampling
from kdrun.rollouts.writer import StudentWriter
from tests.training.conftest import END, rows, student, teacher

__all__ = ["rows", "student", "teacher", "texts_of", "writer_of"]


def writer_of(student: Any, *, new: int = 6, max_tokens: int = 32, mixed_with: Mixture | None = None) -> StudentWriter:
    return StudentWriter(
        student, Sampling(new), eos_id=END, pad_id=END, batch_size=4, max_tokens=max_tokens, seed=3,
        mixed_with=mixed_with,
    )  # fmt: skip


def texts_of(encoded: EncodedSet) -> list[list[int]]:
    """Prompt and answer of each row."""
    return [encoded.row(i)[0].tolist() for i in range(len(encoded))]
