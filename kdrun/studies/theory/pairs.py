"""Random pairs of a teacher and a student of several kinds, on which the statements of the theory are checked. float64.

Shapes: N pairs, V classes. p = softmax(teacher logits), q = softmax(student logits).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdrun.losses import divergence_diagnostics, make_loss
from kdrun.losses.interface import log_softmax

NEAR_UNIFORM_SCALE = 0.01
TIED_SCALE = 2.0  # normal logits rounded to whole numbers: of 10 classes 7 share their probability with another
FAR_SCALE = 2.0  # a far student is drawn without a look at the teacher
NEAR_NOISE = 0.1  # a near one is the teacher's logits with this much noise


@dataclass(frozen=True)
class Pairs:
    """N teachers of one kind and their students. `kind`: in words, e.g. `scale 4, far student`."""

    kind: str
    student_logits_NV: Tensor
    teacher_logits_NV: Tensor

    @property
    def num_classes(self) -> int:
        return self.teacher_logits_NV.shape[-1]

    @cached_property
    def log_q_NV(self) -> Tensor:
        return log_softmax(self.student_logits_NV)

    @cached_property
    def log_p_NV(self) -> Tensor:
        return log_softmax(self.teacher_logits_NV)

    @cached_property
    def q_NV(self) -> Tensor:
        return self.log_q_NV.exp()

    @cached_property
    def p_NV(self) -> Tensor:
        return self.log_p_NV.exp()

    @cached_property
    def log_ratio_NV(self) -> Tensor:
        """log(q/p)."""
        return self.log_q_NV - self.log_p_NV

    @cached_property
    def diagnostics(self) -> dict[str, Tensor]:
        """Each pair's divergences, gaps and AKL's weight, see losses/diagnostics.py."""
        return divergence_diagnostics(self.student_logits_NV, self.teacher_logits_NV)

    def value(self, name: str) -> Tensor:
        """nats_N of a loss at its own parameters."""
        return make_loss(name)(self.student_logits_NV, self.teacher_logits_NV)


def normal(num: int, num_classes: int, *, scale: float, generator: torch.Generator) -> Tensor:
    """logits_NV: normal with standard deviation `scale`, float64."""
    return scale * torch.randn(num, num_classes, dtype=torch.float64, generator=generator)


def all_pairs(num: int, *, num_classes: Sequence[int], scales: Sequence[float], seed: int) -> Iterator[Pairs]:
    """`num` pairs of every kind of teacher, near and far student, and number of classes.

    Teachers: uniform on the simplex (Dirichlet 1), normal logits of every one of `scales`, near-uniform, with ties.
    """
    generator = torch.Generator().manual_seed(seed)
    for classes in num_classes:
        for kind, teacher_NV in _teachers(num, classes, scales, generator):
            noise_NV = normal(num, classes, scale=NEAR_NOISE, generator=generator)
            yield Pairs(f"{kind}, near student", teacher_NV + noise_NV, teacher_NV)
            yield Pairs(f"{kind}, far student", normal(num, classes, scale=FAR_SCALE, generator=generator), teacher_NV)


def num_kinds(scales: Sequence[float]) -> int:
    """How many kinds of pairs `all_pairs` makes for each number of classes."""
    return 2 * (3 + len(scales))


def _teachers(
    num: int, classes: int, scales: Sequence[float], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    uniform_NV = torch.rand(num, classes, dtype=torch.float64, generator=generator)
    yield "Dirichlet", torch.log(-torch.log1p(-uniform_NV).clamp(max=-1e-300))  # exponential variates, normalised
    for scale in scales:
        yield f"scale {scale:g}", normal(num, classes, scale=scale, generator=generator)
    yield "near-uniform", normal(num, classes, scale=NEAR_UNIFORM_SCALE, generator=generator)
    yield "with ties", normal(num, classes, scale=TIED_SCALE, generator=generator).round()
