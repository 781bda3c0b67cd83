"""Reverse KL, KL(student || teacher) (Gu et al., MiniLLM, arXiv 2306.08543), over the whole vocabulary.

MiniLLM itself optimises the sequence-level form by policy gradient on the student's samples; this is the token-level
form of DistiLLM's and AKL's code.
"""

from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.interface import Loss


class Rkl(Loss):
    """sum q log(q/p); gradient in the student's logits: q (log(q/p) - RKL)."""

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return kl(log_q_NV, log_p_NV)
