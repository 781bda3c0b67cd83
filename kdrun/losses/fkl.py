"""Forward KL, KL(teacher || student) (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

MiniLLM, DistiLLM and TAID print the cross-entropy form, without the teacher's entropy; here the value is a true
divergence. The gradients are the same.
"""

from torch import Tensor

from kdrun.losses.interface import Loss


class Fkl(Loss):
    """sum p log(p/q); gradient in the student's logits: q - p."""

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return kl(log_p_NV, log_q_NV)


def kl(log_first_NV: Tensor, log_second_NV: Tensor) -> Tensor:
    """KL(first || second) in nats per row."""
    return (log_first_NV.exp() * (log_first_NV - log_second_NV)).sum(-1)
