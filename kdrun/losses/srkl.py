"""Skewed reverse KL (Ko et al., DistiLLM, arXiv 2402.03898).

The gradient flows through the mixture too; DistiLLM-2's trainer detaches the student there (same value, another
gradient).
"""

from torch import Tensor

from kdrun.losses.interface import Loss, dot, teacher_of, through_log_softmax_
from kdrun.losses.parameters import checked_number
from kdrun.losses.skl import log_first_over_mixture, skewed_kl


class Srkl(Loss):
    """KL(student || alpha student + (1 - alpha) teacher), alpha in [0, 1); alpha = 0 is KL(student || teacher)."""

    is_f_divergence = True

    def __init__(self, *, alpha: float = 0.1) -> None:
        self.alpha = checked_number("alpha", alpha, low=0, high=1, high_open=True, example=0.1)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return skewed_kl(log_q_NV, log_p_NV, self.alpha)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """With m the mixture: d/d log q of the value is q (log(q/m) + 1 - alpha q / m)."""
        q_NV = log_q_NV.exp()
        log_q_over_m_NV = log_first_over_mixture(log_q_NV, teacher_of(self, log_p_NV), self.alpha)
        nats_N = dot(q_NV, log_q_over_m_NV)
        slope_NV = log_q_over_m_NV.exp().mul_(-self.alpha).add_(1).add_(log_q_over_m_NV).mul_(q_NV)
        return nats_N, through_log_softmax_(slope_NV, q_NV)
