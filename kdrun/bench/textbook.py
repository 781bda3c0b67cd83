"""The divergences as a textbook, or the published code, writes them: whole tensors, plain autograd. Nats per token.

Shapes: N tokens, V vocabulary. p = softmax(teacher), q = softmax(student).
"""

from __future__ import annotations

import torch
from torch import Tensor


def fkl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(teacher || student)."""
    log_q_NV, log_p_NV = torch.log_softmax(student_NV, -1), torch.log_softmax(teacher_NV, -1)
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def rkl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(student || teacher)."""
    log_q_NV, log_p_NV = torch.log_softmax(student_NV, -1), torch.log_softmax(teacher_NV, -1)
    return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1)


def jsd(student_NV: Tensor, teacher_NV: Tensor, *, beta: float = 0.5) -> Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649)."""
    log_q_NV, log_p_NV = torch.log_softmax(student_NV, -1), torch.log_softmax(teacher_NV, -1)
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
    log_m_NV = (beta * p_NV + (1 - beta) * q_NV).log()
    return (beta * p_NV * (log_p_NV - log_m_NV) + (1 - beta) * q_NV * (log_q_NV - log_m_NV)).sum(-1)


def akl(student_NV: Tensor, teacher_NV: Tensor, *, mu: float = 0.5) -> Tensor:
    """Adaptive KL (arXiv 2404.02657) as its published code finds the head: the whole vocabulary is sorted.

    As there, the student's probabilities are gathered in the teacher's order and both gaps summed in that order.
    """
    q_NV, p_NV = torch.softmax(student_NV, -1).detach(), torch.softmax(teacher_NV, -1)
    sorted_p_NV, order_NV = p_NV.sort(dim=-1, descending=True)
    gap_NV = (sorted_p_NV - q_NV.gather(-1, order_NV)).abs()
    tail_NV = sorted_p_NV.cumsum(-1) > mu
    tail_NV[:, 0] = False
    head_N, tail_N = gap_NV.masked_fill(tail_NV, 0.0).sum(-1), gap_NV.masked_fill(~tail_NV, 0.0).sum(-1)
    weight_N = head_N / (head_N + tail_N)
    return weight_N * fkl(student_NV, teacher_NV) + (1 - weight_N) * rkl(student_NV, teacher_NV)


TEXTBOOK = {"fkl": fkl, "rkl": rkl, "jsd": jsd, "akl": akl}
GKD_BETA = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}  # of the generalised JSD of the same name, as TRL and Liger mean it
