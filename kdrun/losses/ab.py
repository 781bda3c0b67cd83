"""Alpha-beta divergence (Cichocki et al., Entropy 2011; distillation: Wang et al., ABKD, arXiv 2505.04560).

ABKD's code has 1/alpha and 1/beta where the limits carry 1/alpha^2 and 1/beta^2 (equal only at 1), and NaN where a
probability underflows; here everything is computed from log-probabilities.
"""

from torch import Tensor

from kdrun.losses.interface import DROPPED_LOG_PROB, Loss
from kdrun.losses.parameters import checked_number

SINGULAR = 1e-6  # within this distance of a singular line (alpha = 0, beta = 0, alpha + beta = 0) its limit is used
CANCELLING = 1e-2  # within this distance the terms cancel and float32 would lose eps / distance: float64 there


class Ab(Loss):
    """D_AB(teacher, student) in nats, any finite alpha and beta; (1, 0) is KL(teacher || student), (0, 1) the reverse.

    Negative alpha, beta or alpha + beta make rare entries dominate: values grow like exp(abs(log q)).
    """

    def __init__(self, *, alpha: float = 0.2, beta: float = 0.7) -> None:
        self.alpha = checked_number("alpha", alpha, example=0.2)
        self.beta = checked_number("beta", beta, example=0.7)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return ab_divergence(log_p_NV, log_q_NV, self.alpha, self.beta)


def ab_divergence(log_first_NV: Tensor, log_second_NV: Tensor, alpha: float, beta: float) -> Tensor:
    """D_AB(first, second) in nats per row, with its limits on the singular lines; every term of the sum is >= 0."""
    total = alpha + beta
    if total < 0:  # a dropped entry would be exp(1e4 abs(total)); with p = q = 1 it adds nothing either
        dropped_NV = log_second_NV.detach() <= DROPPED_LOG_PROB
        log_first_NV, log_second_NV = log_first_NV.masked_fill(dropped_NV, 0), log_second_NV.masked_fill(dropped_NV, 0)
    dtype = log_first_NV.dtype
    if any(SINGULAR < abs(x) < CANCELLING for x in (alpha, beta, total)):
        log_first_NV, log_second_NV = log_first_NV.double(), log_second_NV.double()
    return _terms(log_first_NV, log_second_NV, alpha, beta).sum(-1).to(dtype)


def _terms(log_first_NV: Tensor, log_second_NV: Tensor, alpha: float, beta: float) -> Tensor:
    """-(1/(alpha beta)) [f^alpha s^beta - alpha/total f^total - beta/total s^total], or its limit."""
    total = alpha + beta
    if abs(alpha) <= SINGULAR and abs(beta) <= SINGULAR:
        return 0.5 * (log_first_NV - log_second_NV).square()
    if abs(beta) <= SINGULAR:
        return _one_exponent(log_first_NV, log_second_NV, alpha)
    if abs(alpha) <= SINGULAR:
        return _one_exponent(log_second_NV, log_first_NV, beta)
    if abs(total) <= SINGULAR:
        ratio_NV = alpha * (log_first_NV - log_second_NV)
        return (ratio_NV.expm1() - ratio_NV) / alpha**2
    powers_NV = (alpha / total) * (total * log_first_NV).exp() + (beta / total) * (total * log_second_NV).exp()
    return (powers_NV - (alpha * log_first_NV + beta * log_second_NV).exp()) / (alpha * beta)


def _one_exponent(log_first_NV: Tensor, log_second_NV: Tensor, alpha: float) -> Tensor:
    """The limit beta -> 0: (1/alpha^2) [f^alpha log(f^alpha/s^alpha) - f^alpha + s^alpha]."""
    scaled_first_NV, scaled_second_NV = alpha * log_first_NV, alpha * log_second_NV
    first_NV = scaled_first_NV.exp()
    return (first_NV * (scaled_first_NV - scaled_second_NV) - first_NV + scaled_second_NV.exp()) / alpha**2
