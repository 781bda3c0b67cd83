"""A fixed mix of forward and reverse KL: the fixed-weight baseline of the AKL paper (Wu et al., arXiv 2404.02657)."""

import torch
from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.interface import Loss, dot, teacher_of
from kdrun.losses.parameters import checked_number


class FklRkl(Loss):
    """weight KL(teacher || student) + (1 - weight) KL(student || teacher), weight in [0, 1]."""

    is_f_divergence = True

    def __init__(self, *, weight: float = 0.5) -> None:
        self.weight = checked_number("weight", weight, low=0, high=1, example=0.5)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return self.weight * kl(log_p_NV, log_q_NV) + (1 - self.weight) * kl(log_q_NV, log_p_NV)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        log_p_NV = teacher_of(self, log_p_NV)
        weight_N = log_q_NV.new_full(log_q_NV.shape[:1], self.weight)
        return mix_with_gradient(log_q_NV, log_p_NV, log_q_NV.exp(), log_p_NV.exp(), weight_N)


def mix_with_gradient(
    log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor, p_NV: Tensor, weight_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(w FKL + (1 - w) RKL per row, its gradient in the student's logits), one constant weight w a row.

    Gradient: w (q sum(p) - p) + (1 - w) q (log(q/p) + 1 - sum(q) - RKL); the sums are 1 unless entries were dropped.
    """
    ratio_NV = log_q_NV - log_p_NV
    forward_N, reverse_N = -dot(p_NV, ratio_NV), dot(q_NV, ratio_NV)
    weight_N1 = weight_N[:, None]
    constant_N = weight_N * p_NV.sum(-1) + (1 - weight_N) * (1 - q_NV.sum(-1) - reverse_N)
    gradient_NV = ratio_NV.mul_(1 - weight_N1).add_(constant_N[:, None]).mul_(q_NV)
    return torch.lerp(reverse_N, forward_N, weight_N), gradient_NV.addcmul_(p_NV, weight_N1, value=-1)
