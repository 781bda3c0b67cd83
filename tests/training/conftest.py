"""A real student, teacher and rows of some hundred parameters."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdrun.data.encoding import EncodedSet
from kdrun.losses import Loss
from kdrun.models.scratch import make_model
from kdrun.rollouts.rollout import Rollout
from kdrun.teachers.live import LiveTeacher
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement

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


def make_loop(
    student: Any, loss: Loss, rows: EncodedSet, *, teacher: Any = None, micro: int | None = None, batch: int = 8,
    lr: float = 0.1, num_steps: int = 4, clip: float | None = None, kd_ratio: float = 0.5,
    rollout: Rollout | None = None,
) -> Loop:  # fmt: skip
    settings = LoopSettings(
        num_steps=num_steps, batch_size=batch, micro_batch_size=micro, seed=0, clip_norm=clip,
        learning_rate=lambda step: lr, log_every=1,
    )  # fmt: skip
    share = rollout.teacher_share if rollout is not None else 0.0
    objective = StudentObjective(student, loss, kd_ratio=kd_ratio, teacher_share=share)
    placement = Placement(objective, lambda: torch.optim.SGD(student.parameters(), lr=lr), Accelerator(cpu=True))
    return Loop(
        placement, rows, settings,
        teacher=LiveTeacher(teacher, rows=None) if teacher is not None else None, pad_id=END, rollout=rollout,
    )  # fmt: skip


def update_of(make: Callable[[Any], Loop], student: Any) -> dict[str, torch.Tensor]:
    """What one plain gradient step adds to each parameter."""
    copied = copy.deepcopy(student)
    make(copied).step(0)
    before = dict(student.named_parameters())
    return {name: value.detach() - before[name].detach() for name, value in copied.named_parameters()}


@pytest.fixture
def student() -> Any:
    return tiny(1)


@pytest.fixture
def teacher() -> Any:
    return tiny(2, width=16)


@pytest.fixture
def rows() -> EncodedSet:
    return encoded(24)
