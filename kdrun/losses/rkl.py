"""Reverse KL, KL(student || teacher) (Gu et al., MiniLLM, arXiv 2306.08543), over the whole vocabulary.

MiniLLM itself optimises the sequence-level form by policy gradient on the student's samples; this is the token-level
form of DistiLLM's and AKL's code.
"""

from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.interface import Loss, dot, teacher_of


class Rkl(Loss):
    """sum q log(q/p); gradient in the student's logits: q (log(q/p) - RKL)."""

    is_f_divergence = True

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return kl(log_q_NV, log_p_NV)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ratio_NV, q_NV = log_q_NV - teacher_of(self, log_p_NV), log_q_NV.exp()
        nats_N = dot(q_NV, ratio_NV)
        constant_N = 1 - q_NV.sum(-1) - nats_N  # sum(q) is below 1 where impossible entries were dropped
        return nats_N, ratio_NV.add_(constant_N[:, None]).mul_(q_NV)
