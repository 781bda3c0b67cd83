"""Distillation through an alpha-mixture assistant (Shin et al., AMiD, arXiv 2510.15982).

The published code computes in the models' dtype and treats every alpha >= 1 as 1; here float32 at least and any alpha.
"""

import math

import torch
from torch import Tensor

from kdrun.losses.ab import ab_divergence
from kdrun.losses.fkl import kl
from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_choice, checked_number

BASES = ("fkl", "rkl", "ab")
ORDERS = ("pr", "qr", "rp", "rq")
GEOMETRIC = 1e-6  # within this distance of alpha = 1 the assistant is the geometric mean
CANCELLING = 1e-2  # within this distance float32 would lose eps / distance in log r: float64 there


class Amid(Loss):
    """base(first, second), where r is the assistant between teacher p and student q; gradient flows through q inside r.

    alpha: any finite number. lam in [0, 1]: share of the teacher, so r = q at 0 and r = p at 1. base: `fkl` is
    KL(first || second), `rkl` KL(second || first), `ab` the AB-divergence at (0.2, 0.7). order: first and second, e.g.
    `pr` compares p with r. alpha = -1 with base fkl and order pr is `skl` with alpha = lam.
    """

    def __init__(self, *, alpha: float = 0.0, lam: float = 0.1, base: str = "fkl", order: str = "pr") -> None:
        self.alpha = checked_number("alpha", alpha, example=0)
        self.lam = checked_number("lam", lam, low=0, high=1, example=0.1)
        self.base = checked_choice("base", base, BASES)
        self.order = checked_choice("order", order, ORDERS)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        log_probs = {"p": log_p_NV, "q": log_q_NV, "r": assistant(log_q_NV, log_p_NV, alpha=self.alpha, lam=self.lam)}
        log_first_NV, log_second_NV = log_probs[self.order[0]], log_probs[self.order[1]]
        if self.base == "fkl":
            return kl(log_first_NV, log_second_NV)
        if self.base == "rkl":
            return kl(log_second_NV, log_first_NV)
        return ab_divergence(log_first_NV, log_second_NV, 0.2, 0.7)


def assistant(log_q_NV: Tensor, log_p_NV: Tensor, *, alpha: float, lam: float) -> Tensor:
    """log r_NV, r ~ (lam p^k + (1 - lam) q^k)^(1/k) with k = (1 - alpha) / 2, or p^lam q^(1-lam) at alpha = 1."""
    if lam in (0, 1):  # exactly an end, and a gradient of 0 rather than none at the teacher's
        return torch.lerp(log_q_NV, log_p_NV, lam)
    if abs(alpha - 1) <= GEOMETRIC:
        return torch.log_softmax(torch.lerp(log_q_NV, log_p_NV, lam), dim=-1)
    if abs(alpha - 1) < CANCELLING and log_q_NV.dtype != torch.float64:
        return assistant(log_q_NV.double(), log_p_NV.double(), alpha=alpha, lam=lam).to(log_q_NV.dtype)
    k = (1 - alpha) / 2
    return torch.log_softmax(
        torch.logaddexp(k * log_p_NV + math.log(lam), k * log_q_NV + math.log(1 - lam)) / k, dim=-1
    )
