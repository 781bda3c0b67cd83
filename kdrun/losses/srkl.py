"""Skewed reverse KL (Ko et al., DistiLLM, arXiv 2402.03898).

The gradient flows through the mixture too; DistiLLM-2's trainer detaches the student there (same value, another
gradient).
"""

from torch import Tensor

from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_number
from kdrun.losses.skl import skewed_kl


class Srkl(Loss):
    """KL(student || alpha student + (1 - alpha) teacher), alpha in [0, 1); alpha = 0 is KL(student || teacher)."""

    def __init__(self, *, alpha: float = 0.1) -> None:
        self.alpha = checked_number("alpha", alpha, low=0, high=1, high_open=True, example=0.1)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return skewed_kl(log_q_NV, log_p_NV, self.alpha)
