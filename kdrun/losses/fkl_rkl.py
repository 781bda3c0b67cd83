"""A fixed mix of forward and reverse KL: the fixed-weight baseline of the AKL paper (Wu et al., arXiv 2404.02657)."""

from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_number


class FklRkl(Loss):
    """weight KL(teacher || student) + (1 - weight) KL(student || teacher), weight in [0, 1]."""

    def __init__(self, *, weight: float = 0.5) -> None:
        self.weight = checked_number("weight", weight, low=0, high=1, example=0.5)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return self.weight * kl(log_p_NV, log_q_NV) + (1 - self.weight) * kl(log_q_NV, log_p_NV)
