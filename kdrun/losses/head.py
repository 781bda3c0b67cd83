"""The head and the tail of the teacher's distribution, and the student's gap on each: shared by akl, gap, diagnostics.

Shapes: N scored tokens, V vocabulary. Source: Wu et al., arXiv 2404.02657, and its published code, which sorts the
vocabulary at every token. Here nothing is sorted: see head_border.py.
"""

import torch
from torch import Tensor

from kdrun.losses.head_border import head_border

HEAD_RULES = ("code", "paper", "pointwise")


def head_share(p_NV: Tensor, *, mu: float, head: str = "code") -> Tensor:
    """How much of each vocabulary entry belongs to the head: 1 or 0, a fraction only for ties at the border.

    With p sorted in descending order and c_k the mass of the first k:
    `code` (the published code, hence the published table): {k: c_k <= mu} and always the top entry, so the entry that
    crosses mu is tail; `paper` (the text): the smallest prefix whose mass reaches mu; `pointwise`: {p > mu}.

    Ties. When equal probabilities straddle the border, a sort would pick some of them by their place in memory. Here
    each gets the same fraction (places left / entries tied): the average over all orders of a sort, so the result does
    not depend on the order of the vocabulary. With bf16 logits such ties are common.
    """
    if head == "pointwise":
        return (p_NV > mu).to(p_NV.dtype)
    border_N1, tied_share_N1 = head_border(p_NV, mu=mu, reaches=head == "paper")
    # compared into floats: 0.1 ns an entry, where a bool mask and torch.where take 4 (measured, torch 2.13, one core)
    share_NV = torch.gt(p_NV, border_N1, out=torch.empty_like(p_NV))
    if tied_share_N1.any():
        share_NV.addcmul_(torch.eq(p_NV, border_N1, out=torch.empty_like(p_NV)), tied_share_N1)
    return share_NV


def head_and_tail_gaps(p_NV: Tensor, q_NV: Tensor, *, mu: float, head: str = "code") -> tuple[Tensor, Tensor]:
    """(head_gap_N, tail_gap_N): sums of abs(p - q) over head and tail, each in [0, 2]; differentiable in q_NV."""
    gap_NV = (p_NV - q_NV).abs()
    head_gap_NV = head_share(p_NV, mu=mu, head=head) * gap_NV
    return head_gap_NV.sum(-1), (gap_NV - head_gap_NV).sum(-1)


def head_weight(head_gap_N: Tensor, tail_gap_N: Tensor) -> Tensor:
    """a = head gap / (head gap + tail gap), in [0, 1]; 1/2 where both gaps are 0 (the published code gives NaN)."""
    total_N = head_gap_N + tail_gap_N
    return torch.where(total_N > 0, head_gap_N / total_N, 0.5)
