"""A real student, teacher and rows of some hundred parameters."""

from typing import Any

import numpy as np
import pytest

from kdrun.data.encoding import EncodedSet
from kdrun.models.scratch import make_model

VOCABULARY, END = 40, 0


def tiny(seed: int, *, width: int = 8) -> Any:
    """Float64, and with embeddings 20 times the usual size, so that its distributions are not all near uniform."""
    model = make_model(
        vocab_size=VOCABULARY, context=32, layers=1, width=width, heads=2, end_id=END, seed=seed
    ).double()
    model.transformer.wte.weight.data *= 20
    return model


def encoded(num_rows: int, seed: int = 0) -> EncodedSet:
    """Rows of 4 to 12 tokens, prompts of 2 to 5, each ending with END (which pads, too)."""
    random = np.random.default_rng(seed)
    prompts = random.integers(2, 6, num_rows)
    rows = [random.integers(1, VOCABULARY, random.integers(p + 1, p + 8)) for p in prompts]
    rows = [np.append(row, END) for row in rows]
    return EncodedSet(
        ids=np.concatenate(rows).astype(np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        prompt_lengths=prompts.astype(np.int32),
        example_index=np.arange(num_rows, dtype=np.int32),
        num_dropped=0,
        num_cut_prompts=0,
        num_cut_responses=0,
    )


@pytest.fixture
def student() -> Any:
    return tiny(1)


@pytest.fixture
def teacher() -> Any:
    return tiny(2, width=16)


@pytest.fixture
def rows() -> EncodedSet:
    return encoded(24)
