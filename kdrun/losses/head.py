"""The head and the tail of the teacher's distribution, and the student's gap on each: shared by akl, gap, diagnostics.

Shapes: N scored tokens, V vocabulary. Source: Wu et al., arXiv 2404.02657, and its published code, which sorts the
vocabulary at every token. Here nothing is sorted: see head_border.py and native/head_border.c.
"""

import torch
from torch import Tensor

from kdrun.losses.head_border import compiled_for, head_border, sizes
from kdrun.native import pointer

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
    border_N1, tied_share_N1 = _border(p_NV, mu, head)
    # compared into floats: 0.1 ns an entry, where a bool mask and torch.where take 4 (measured, torch 2.13, one core)
    share_NV = torch.gt(p_NV, border_N1, out=torch.empty_like(p_NV))
    if tied_share_N1.any():
        share_NV.addcmul_(torch.eq(p_NV, border_N1, out=torch.empty_like(p_NV)), tied_share_N1)
    return share_NV


def _border(p_NV: Tensor, mu: float, head: str) -> tuple[Tensor, Tensor]:
    """(border_N1, share_N1) of a head rule."""
    if head == "pointwise":
        border_N1 = p_NV.new_full((len(p_NV), 1), mu)
        return border_N1, torch.zeros_like(border_N1)
    return head_border(p_NV, mu=mu, reaches=head == "paper")


def head_and_tail_gaps(p_NV: Tensor, q_NV: Tensor, *, mu: float, head: str = "code") -> tuple[Tensor, Tensor]:
    """(head_gap_N, tail_gap_N): sums of abs(p - q) over head and tail, each in [0, 2]; differentiable in q_NV."""
    if not (q_NV.requires_grad and torch.is_grad_enabled()):
        return _gaps_without_gradient(p_NV, q_NV, mu, head)
    gap_NV = (p_NV - q_NV).abs()
    head_gap_NV = head_share(p_NV, mu=mu, head=head) * gap_NV
    return head_gap_NV.sum(-1), (gap_NV - head_gap_NV).sum(-1)


def _gaps_without_gradient(p_NV: Tensor, q_NV: Tensor, mu: float, head: str) -> tuple[Tensor, Tensor]:
    """The same in one pass over both (0.02 ns an entry on one core), or in few operations on one copy."""
    library = compiled_for(p_NV) if compiled_for(q_NV) is not None else None
    if library is None:
        gap_NV = torch.sub(p_NV, q_NV).abs_()
        total_N = gap_NV.sum(-1)
        head_N = gap_NV.mul_(head_share(p_NV, mu=mu, head=head)).sum(-1)
    else:
        border_N1, share_N1 = _border(p_NV, mu, head)
        head_N, total_N = p_NV.new_empty(len(p_NV)), p_NV.new_empty(len(p_NV))
        library.head_gaps(
            pointer(p_NV), pointer(q_NV), *sizes(p_NV), pointer(border_N1), pointer(share_N1),
            pointer(head_N), pointer(total_N), torch.get_num_threads(),
        )  # fmt: skip
    return head_N, total_N - head_N


def head_weight(head_gap_N: Tensor, tail_gap_N: Tensor) -> Tensor:
    """a = head gap / (head gap + tail gap), in [0, 1]; 1/2 where both gaps are 0 (the published code gives NaN)."""
    total_N = head_gap_N + tail_gap_N
    return torch.where(total_N > 0, head_gap_N / total_N, 0.5)
