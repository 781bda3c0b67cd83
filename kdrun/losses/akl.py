"""Adaptive KL (Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for LLMs, arXiv 2404.02657).

Where published code differs. The paper's text and the paper's code disagree on the entry that crosses mu (see head.py);
both return NaN at p = q. TAID's reimplementation sorts ascending and never undoes the sort, so its value depends on the
order of the vocabulary; AMiD's passes student and teacher swapped and lets the gradient through the weights.
"""

import torch
from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.fkl_rkl import mix_with_gradient
from kdrun.losses.head import HEAD_RULES, head_and_tail_gaps, head_weight
from kdrun.losses.interface import Loss, teacher_of
from kdrun.losses.parameters import checked_choice, checked_flag, checked_number


class Akl(Loss):
    """a KL(teacher || student) + (1 - a) KL(student || teacher), a = head gap / (head gap + tail gap), a constant.

    mu: mass of the head, in (0, 1). head: which entries are head, see head.py. reversed: swap the two weights (AKL-r,
    the paper's control).
    """

    traceable = False

    def __init__(self, *, mu: float = 0.5, head: str = "code", reversed: bool = False) -> None:
        self.mu = checked_number("mu", mu, low=0, high=1, low_open=True, high_open=True, example=0.5)
        self.head = checked_choice("head", head, HEAD_RULES)
        self.reversed = checked_flag("reversed", reversed)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        weight_N = self.forward_weight(log_q_NV, log_p_NV)
        return weight_N * kl(log_p_NV, log_q_NV) + (1 - weight_N) * kl(log_q_NV, log_p_NV)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        log_p_NV = teacher_of(self, log_p_NV)
        q_NV, p_NV = log_q_NV.exp(), log_p_NV.exp()
        return mix_with_gradient(log_q_NV, log_p_NV, q_NV, p_NV, self._forward_weight(q_NV, p_NV))

    @torch.no_grad()
    def forward_weight(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        """Weight of KL(teacher || student) for each token, in [0, 1], without gradient."""
        return self._forward_weight(log_q_NV.exp(), log_p_NV.exp())

    def _forward_weight(self, q_NV: Tensor, p_NV: Tensor) -> Tensor:
        weight_N = head_weight(*head_and_tail_gaps(p_NV, q_NV, mu=self.mu, head=self.head))
        return 1 - weight_N if self.reversed else weight_N
