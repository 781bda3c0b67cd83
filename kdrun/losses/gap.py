"""Weighted head and tail gaps: the open question that ends Zhong 2025.

Neither gap alone is a divergence of the whole distribution; with both weights 1 the value is twice the total variation.
"""

from torch import Tensor

from kdrun.losses.head import head_and_tail_gaps, head_share
from kdrun.losses.interface import Loss, dot, teacher_of, through_log_softmax_
from kdrun.losses.parameters import checked_number


class Gap(Loss):
    """head_weight sum over the head of abs(p - q) + tail_weight sum over the tail of abs(p - q), weights >= 0.

    The head is AKL's, by the rule `code`, with mu in (0, 1). It depends on the teacher alone, so it has no gradient.
    """

    traceable = False

    def __init__(self, *, head_weight: float = 1.0, tail_weight: float = 1.0, mu: float = 0.5) -> None:
        self.head_weight = checked_number("head_weight", head_weight, low=0, example=1)
        self.tail_weight = checked_number("tail_weight", tail_weight, low=0, example=1)
        self.mu = checked_number("mu", mu, low=0, high=1, low_open=True, high_open=True, example=0.5)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        head_gap_N, tail_gap_N = head_and_tail_gaps(log_p_NV.exp(), log_q_NV.exp(), mu=self.mu)
        return self.head_weight * head_gap_N + self.tail_weight * tail_gap_N

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q_NV, p_NV = log_q_NV.exp(), teacher_of(self, log_p_NV).exp()
        weight_NV = head_share(p_NV, mu=self.mu).mul_(self.head_weight - self.tail_weight).add_(self.tail_weight)
        gap_NV = q_NV - p_NV
        nats_N = dot(weight_NV, gap_NV.abs())
        return nats_N, through_log_softmax_(gap_NV.sign_().mul_(weight_NV).mul_(q_NV), q_NV)
