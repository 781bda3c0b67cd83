"""Generalised Jensen-Shannon divergence (Agarwal et al., GKD, arXiv 2306.13649).

beta is the weight of the teacher, as in GKD, TRL and Liger; DistiLLM's lam is 1 - beta, with a default of its own.
"""

import torch
from torch import Tensor

from kdrun.losses.fkl import Fkl, kl
from kdrun.losses.interface import Loss, dot, teacher_of, through_log_softmax_
from kdrun.losses.parameters import checked_number
from kdrun.losses.rkl import Rkl
from kdrun.losses.skl import skewed_kl


class Jsd(Loss):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student, beta in [0, 1].

    beta = 0 means KL(teacher || student) and beta = 1 KL(student || teacher): the limits of the value divided by beta
    and by 1 - beta. So the value is not continuous there (the formula itself tends to 0).
    """

    is_f_divergence = True

    def __init__(self, *, beta: float = 0.5) -> None:
        self.beta = checked_number("beta", beta, low=0, high=1, example=0.5)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        if self.beta == 0:
            return kl(log_p_NV, log_q_NV)
        if self.beta == 1:
            return kl(log_q_NV, log_p_NV)
        teacher_N = skewed_kl(log_p_NV, log_q_NV, self.beta)
        student_N = skewed_kl(log_q_NV, log_p_NV, 1 - self.beta)
        return self.beta * teacher_N + (1 - self.beta) * student_N

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """d/d log q of the value is (1 - beta) q log(q/m)."""
        if self.beta in {0, 1}:
            return (Rkl() if self.beta else Fkl()).with_gradient(log_q_NV, log_p_NV, target_N)
        log_p_NV, q_NV = teacher_of(self, log_p_NV), log_q_NV.exp()
        log_q_over_m_NV, log_p_over_m_NV = _logs_over_mixture(log_q_NV, log_p_NV, self.beta)
        student_terms_NV = log_q_over_m_NV.mul_(q_NV)
        nats_N = self.beta * dot(log_p_NV.exp(), log_p_over_m_NV) + (1 - self.beta) * student_terms_NV.sum(-1)
        return nats_N, through_log_softmax_(student_terms_NV, q_NV).mul_(1 - self.beta)


def _logs_over_mixture(log_q_NV: Tensor, log_p_NV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(log(q/m), log(p/m)), m = beta p + (1 - beta) q, with one exponential and one logarithm.

    The greater of p and q over m is 1 / (w + (1 - w) u), u the lesser over the greater, w the weight of the greater in
    m. The other logarithm is that plus log u. From log(q/m) alone, log(p/m) would lose 1e-6 where q/p is e^-20.
    """
    ratio_NV = log_q_NV - log_p_NV
    lesser_over_greater_NV = ratio_NV.abs().neg_().exp_()
    one = torch.ones_like(ratio_NV[:1, :1])
    # beta where p is the greater, 1 - beta where q is
    weight = 0.5 if beta == 0.5 else ratio_NV.sign().mul_(0.5 - beta).add_(0.5)
    mixture_over_greater_NV = torch.lerp(lesser_over_greater_NV, one, weight)
    log_mixture_NV = mixture_over_greater_NV.log_()
    log_q_over_m_NV = ratio_NV.clamp(max=0).sub_(log_mixture_NV)
    return log_q_over_m_NV, log_mixture_NV.add_(ratio_NV.clamp_(min=0)).neg_()
