"""Generalised Jensen-Shannon divergence (Agarwal et al., GKD, arXiv 2306.13649).

beta is the weight of the teacher, as in GKD, TRL and Liger; DistiLLM's lam is 1 - beta, with a default of its own.
"""

from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_number
from kdrun.losses.skl import skewed_kl


class Jsd(Loss):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student, beta in [0, 1].

    beta = 0 means KL(teacher || student) and beta = 1 KL(student || teacher): the limits of the value divided by beta
    and by 1 - beta. So the value is not continuous there (the formula itself tends to 0).
    """

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
