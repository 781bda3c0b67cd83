"""Contrastive distillation: one loss on the teacher's answers, another on the student's (DistiLLM-2, arXiv 2503.07067).

    1/2 [mean over the teacher's tokens of SKL + mean over the student's tokens of SRKL],

both at a fixed alpha, the gradient through the student inside the mixtures. The halves' 1/2 are the rollout's.
`variant="code"` is what the published trainer computes: the sum without 1/2, the mean over a text's tokens before that
over texts, and an SRKL whose mixture is a constant (another gradient: 0.1336 against 0.1007 in norm on one example).
The paper's curricula of alpha and of the halves' weights are not here; in that trainer they cannot act.
"""

import torch
from torch import Tensor

from kdrun.losses.interface import Loss, dot, teacher_of, through_log_softmax_
from kdrun.losses.parameters import checked_choice
from kdrun.losses.skl import Skl, log_first_over_mixture
from kdrun.losses.srkl import Srkl
from kdrun.losses.written import TokenWeights, WrittenText

VARIANTS = ("paper", "code")


class Cald(Skl):
    """SKL on text of the teacher (or the data), SRKL on text of the student; alpha in [0, 1) of both."""

    is_f_divergence = False  # its other half is taken on new text, which no lossy cache holds

    def __init__(self, *, alpha: float = 0.1, variant: str = "paper") -> None:
        super().__init__(alpha=alpha)
        self.variant = checked_choice("variant", variant, VARIANTS)
        self.mean_over = "tokens" if variant == "paper" else "texts"
        self.on_student: Srkl = Srkl(alpha=alpha) if variant == "paper" else _SrklToConstant(alpha=alpha)

    def on(self, writer: str) -> Loss:
        return self.on_student if writer == "student" else self

    def weigh(self, text: WrittenText) -> TokenWeights | None:
        return None if self.variant == "paper" else _twice_a_text(text)


class _SrklToConstant(Srkl):
    """KL(student || alpha student + (1 - alpha) teacher), no gradient through the second."""

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """With m the mixture: d/d log q of the value is q (log(q/m) + 1)."""
        q_NV = log_q_NV.exp()
        log_q_over_m_NV = log_first_over_mixture(log_q_NV, teacher_of(self, log_p_NV), self.alpha)
        return dot(q_NV, log_q_over_m_NV), through_log_softmax_(log_q_over_m_NV.add_(1).mul_(q_NV), q_NV)

    def weigh(self, text: WrittenText) -> TokenWeights:
        return _twice_a_text(text)


def _twice_a_text(text: WrittenText) -> TokenWeights:
    """Each text counts 2, whatever its length: the code's sum of both halves, where a half counts 1/2 here."""
    lengths_R = torch.tensor(text.lengths, dtype=torch.long)
    return TokenWeights((2 / lengths_R).repeat_interleave(lengths_R))
