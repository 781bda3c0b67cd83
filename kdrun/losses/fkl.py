"""Forward KL, KL(teacher || student) (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

MiniLLM, DistiLLM and TAID print the cross-entropy form, without the teacher's entropy; here the value is a true
divergence. The gradients are the same.
"""

from torch import Tensor

from kdrun.losses.interface import Loss, dot, teacher_of


class Fkl(Loss):
    """sum p log(p/q); gradient in the student's logits: q - p."""

    is_f_divergence = True

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return kl(log_p_NV, log_q_NV)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return forward_kl_with_gradient(log_q_NV, teacher_of(self, log_p_NV))


def forward_kl_with_gradient(log_q_NV: Tensor, log_p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student) per row, its gradient in the student's logits, q sum(p) - p)."""
    p_NV = log_p_NV.exp()
    nats_N = dot(p_NV, log_p_NV - log_q_NV)
    return nats_N, forward_kl_gradient(log_q_NV, p_NV)


def forward_kl_gradient(log_q_NV: Tensor, p_NV: Tensor) -> Tensor:
    """The gradient of KL(teacher || student) in the student's logits: q sum(p) - p."""
    # sum(p) is below 1 where impossible entries were dropped
    return log_q_NV.exp().mul_(p_NV.sum(-1, keepdim=True)).sub_(p_NV)


def kl(log_first_NV: Tensor, log_second_NV: Tensor) -> Tensor:
    """KL(first || second) in nats per row."""
    return (log_first_NV.exp() * (log_first_NV - log_second_NV)).sum(-1)
