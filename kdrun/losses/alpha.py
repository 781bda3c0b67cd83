"""Alpha divergence (Amari; in the form of the seed slides), as the line alpha + beta = 1 of the AB-divergence."""

from torch import Tensor

from kdrun.losses.ab import ab_divergence
from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_number


class Alpha(Loss):
    """(1 - sum p^alpha q^(1-alpha)) / (alpha (1 - alpha)), any finite alpha.

    alpha -> 1 is KL(teacher || student), alpha -> 0 is KL(student || teacher), alpha = 1/2 is four times the squared
    Hellinger distance 1 - sum sqrt(p q).
    """

    is_f_divergence = True

    def __init__(self, *, alpha: float = 0.5) -> None:
        self.alpha = checked_number("alpha", alpha, example=0.5)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return ab_divergence(log_p_NV, log_q_NV, self.alpha, 1 - self.alpha)
