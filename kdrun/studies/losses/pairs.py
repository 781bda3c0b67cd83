"""Pairs of a teacher and a student for the map of the losses, and what a loss says of them. float64.

Shapes: N pairs, V classes. p = softmax(teacher logits), q = softmax(student logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from kdrun.losses import Loss
from kdrun.losses.interface import log_softmax, nats_and_gradient

TEACHER_STD = 3.0  # of normal logits: the likeliest of 1,000 classes has about a quarter of the mass
MOST_CURVES = 5  # in one panel
Item = TypeVar("Item")
Pair = tuple[Tensor, Tensor]  # (student_logits_NV, teacher_logits_NV)


def value_and_gradient(loss: Loss, student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(nats_N, gradient_NV in the student's logits), the gradient as training takes it."""
    return nats_and_gradient(loss, log_softmax(student_logits_NV), log_softmax(teacher_logits_NV), None)


def noisy_pairs(num: int, *, vocabulary: int, noise_std: float, seed: int) -> Pair:
    """(student_logits_NV, teacher_logits_NV): a peaked teacher, and the same logits with normal noise on top.

    Teachers and the noise's directions depend on the seed alone: pairs of two noise_std differ in size only.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher_NV, noise_NV = torch.randn(2, num, vocabulary, generator=generator, dtype=torch.float64)
    return TEACHER_STD * teacher_NV + noise_std * noise_NV, TEACHER_STD * teacher_NV


def logits(probabilities: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Logits [V] or [N, V] of one distribution or of several."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def step_norm(gradient_NV: Tensor) -> float:
    """Euclidean norm of the gradients of all pairs together: that of an optimiser step over N tokens."""
    return float(gradient_NV.norm())


def in_panels(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The items in as few groups of at most MOST_CURVES as can be, sizes within one of another, order kept."""
    num_panels = -(-len(items) // MOST_CURVES)
    ends = [-(-len(items) * i // num_panels) for i in range(num_panels + 1)]
    return [items[start:end] for start, end in pairwise(ends)]
