"""How strongly the losses curve, and whether a larger head gap means a smaller gradient (Zhong 2025, section 4).

Shapes: N pairs, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.losses import Loss, make_loss
from kdrun.losses.head import head_and_tail_gaps
from kdrun.losses.interface import log_softmax
from kdrun.studies.theory.pairs import Pairs, normal
from kdrun.studies.theory.statements import forward_gradient, signed_gaps

SMOOTH = ("fkl", "rkl", "jsd")
HESSIAN_CLASSES = 10
STUDENT_SCALE = 4.0  # peaked enough for two classes with half the mass each, where forward KL curves most
GAP_CLASSES = 200
TOTAL_GAP = 0.4
PAIRS_A_DRAW = 20  # times num_pairs
TEACHER_SCALES = (1.0, 2.0, 3.0)
NUM_DRAWS = 2 * len(TEACHER_SCALES)


def hessians(loss: Loss, student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """hessian_NVV of each row's value in the student's logits, by automatic differentiation, one class at a time."""
    logits_NV = student_logits_NV.clone().requires_grad_()
    nats_N = loss.from_log_probs(log_softmax(logits_NV), log_softmax(teacher_logits_NV), None)
    (gradient_NV,) = torch.autograd.grad(nats_N.sum(), logits_NV, create_graph=True)
    sums_V = gradient_NV.sum(0)
    return torch.stack([torch.autograd.grad(total, logits_NV, retain_graph=True)[0] for total in sums_V], 1)


def hessian_norms(
    num: int, *, scales: Sequence[float], seed: int, advance: Callable[[], None]
) -> dict[str, dict[float, float]]:
    """{loss: {teacher's logit scale: largest Hessian norm of `num` pairs}}, 10 classes.

    The norm is the largest absolute eigenvalue. Students are the same at every scale.
    """
    found: dict[str, dict[float, float]] = {name: {} for name in SMOOTH}
    for scale in scales:
        generator = torch.Generator().manual_seed(seed)
        student_NV = normal(num, HESSIAN_CLASSES, scale=STUDENT_SCALE, generator=generator)
        teacher_NV = normal(num, HESSIAN_CLASSES, scale=scale, generator=generator)
        for name in SMOOTH:
            eigenvalues_NV = torch.linalg.eigvalsh(hessians(make_loss(name), student_NV, teacher_NV))
            found[name][scale] = float(eigenvalues_NV.abs().max())
        advance()
    return found


@dataclass(frozen=True)
class GapDraw:
    """Pairs of one total gap: each pair's head gap, signed head gap and norm of FKL's gradient."""

    kind: str
    head_gap_N: Tensor
    signed_gap_N: Tensor
    norm_N: Tensor

    @property
    def correlations(self) -> tuple[float, float]:
        """Of the norm with the head gap, and with the signed head gap (over-estimated head: positive)."""
        return _correlation(self.norm_N, self.head_gap_N), _correlation(self.norm_N, self.signed_gap_N)


def gap_draws(num: int, *, seed: int, advance: Callable[[], None]) -> list[GapDraw]:
    """Pairs with a total gap of 0.4 over 200 classes, by teacher (logit scale 1, 2, 3) and student, near or far.

    The student lies on the segment from the teacher to another distribution: an independent one of logit scale 2, or
    the teacher's logits with noise of standard deviation 1. Pairs closer than the gap are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for scale in TEACHER_SCALES:
        teacher_NV = normal(num * PAIRS_A_DRAW, GAP_CLASSES, scale=scale, generator=generator)
        noise_NV = normal(len(teacher_NV), GAP_CLASSES, scale=1, generator=generator)
        for kind, end_NV in (("near", teacher_NV + noise_NV), ("far", 2 * noise_NV)):
            p_NV, end_p_NV = teacher_NV.softmax(-1), end_NV.softmax(-1)
            gap_N1 = (end_p_NV - p_NV).abs().sum(-1, keepdim=True)
            kept_N = gap_N1[:, 0] >= TOTAL_GAP
            q_NV = torch.lerp(p_NV, end_p_NV, TOTAL_GAP / gap_N1)
            pairs = Pairs(f"scale {scale:g}, {kind} student", q_NV[kept_N].log(), teacher_NV[kept_N])
            head_gap_N, _ = head_and_tail_gaps(pairs.p_NV, pairs.q_NV, mu=0.5)
            signed_gap_N, _ = signed_gaps(pairs)
            draws.append(GapDraw(pairs.kind, head_gap_N, signed_gap_N, forward_gradient(pairs).norm(dim=-1)))
            advance()
    return draws


def _correlation(first_N: Tensor, second_N: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first_N, second_N]))[0, 1])
