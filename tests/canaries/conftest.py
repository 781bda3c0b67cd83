"""A real pair of some thousand parameters, a real tokenizer and eight rows of text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdrun.canaries.patient import Patient, by_hand
from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Example
from kdrun.losses import make_loss
from kdrun.models.scratch import make_model, train_tokenizer
from kdrun.teachers.live import LiveTeacher

LIMITS = {"template": "plain", "max_prompt_tokens": 30, "max_tokens": 48}
EXAMPLES = [Example(f"Say the word {i} times", "", (" ".join(["word"] * (1 + i)),)) for i in range(8)]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer([e.instruction + e.response for e in EXAMPLES], vocab_size=300)


def model(tokenizer: Any, *, width: int, seed: int) -> Any:
    """Embeddings 20 times the usual size, so that its distributions are not all near uniform."""
    made = make_model(
        vocab_size=len(tokenizer), context=48, layers=1, width=width, heads=2, end_id=tokenizer.eos_token_id, seed=seed
    )
    made.transformer.wte.weight.data *= 20
    return made


@pytest.fixture
def patient(tokenizer: Any) -> Patient:
    """Distilled with AKL from a live teacher."""
    encoded = encode(EXAMPLES, tokenizer, **LIMITS)
    student, teacher = model(tokenizer, width=8, seed=1), model(tokenizer, width=16, seed=2)
    return Patient(
        student, tokenizer, make_loss("akl"), encoded, np.arange(8), by_hand(EXAMPLES, tokenizer, **LIMITS),
        shared=len(tokenizer), teacher=LiveTeacher(teacher, rows=None),
        mix={"kd_ratio": 0.5, "temperature": 2.0, "temperature_squared": True},
    )  # fmt: skip


def without_ends(encoded: EncodedSet) -> EncodedSet:
    """The rows without their last token."""
    rows = [encoded.row(i)[0][:-1] for i in range(len(encoded))]
    return replace(encoded, ids=np.concatenate(rows), offsets=np.cumsum([0, *map(len, rows)]))


Breaking = Callable[[pytest.MonkeyPatch], None]
