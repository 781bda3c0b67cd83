"""Skewed forward KL (Ko et al., DistiLLM, arXiv 2402.03898).

DistiLLM's code prints it without the teacher's entropy, and gives NaN where p and q both underflow.
"""

import math

import torch
from torch import Tensor

from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_number


class Skl(Loss):
    """KL(teacher || alpha teacher + (1 - alpha) student), alpha in [0, 1); alpha = 0 is KL(teacher || student)."""

    def __init__(self, *, alpha: float = 0.1) -> None:
        self.alpha = checked_number("alpha", alpha, low=0, high=1, high_open=True, example=0.1)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return skewed_kl(log_p_NV, log_q_NV, self.alpha)


def skewed_kl(log_first_NV: Tensor, log_second_NV: Tensor, weight: float) -> Tensor:
    """KL(first || m) in nats, m = weight first + (1 - weight) second.

    log(first / m) = -log(weight + (1 - weight) second / first): from the ratio rather than from log m, so that rounding
    stays near 1e-7 where the two are equal (it grows with abs(log first) otherwise), and no probability underflows.
    """
    log_weight, log_rest = (math.log(x) if x > 0 else -math.inf for x in (weight, 1 - weight))
    ratio_NV = log_second_NV - log_first_NV
    log_first_over_m_NV = -torch.logaddexp(ratio_NV.new_tensor(log_weight), ratio_NV + log_rest)
    return (log_first_NV.exp() * log_first_over_m_NV).sum(-1)
