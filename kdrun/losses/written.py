"""What a loss is told of the text that a batch holds, and what it may say of its tokens.

Shapes: N scored tokens of a batch, row after row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.losses.interface import log_softmax
from kdrun.losses.linear_head import LinearHead
from kdrun.losses.row_blocks import row_blocks


@dataclass(frozen=True)
class WrittenText:
    """Scored tokens of each row, and the share of the teacher in the mixture that they were drawn from (0: none).

    `log_probs()` computes log q and log p of every token as it stands there [N], at temperature 1, without gradient;
    it passes both heads, so a loss that does not need it does not pay for it.
    """

    lengths: tuple[int, ...]
    log_probs: Callable[[], tuple[Tensor, Tensor]]
    teacher_share: float = 0.0


@dataclass(frozen=True)
class TokenWeights:
    """What each token's divergence and cross-entropy are multiplied by; cross_entropy_N None: by 1 - kd_ratio."""

    divergence_N: Tensor
    cross_entropy_N: Tensor | None = None

    def to(self, device: torch.device) -> "TokenWeights":
        """The same on a device."""
        cross_entropy_N = None if self.cross_entropy_N is None else self.cross_entropy_N.to(device)
        return TokenWeights(self.divergence_N.to(device), cross_entropy_N)


@torch.no_grad()
def target_log_probs(hidden_ND: Tensor, head: LinearHead, target_N: Tensor, *, chunk_tokens: int) -> Tensor:
    """Log-probability [N] of each target under a head, float32; so many tokens are projected at a time."""
    head = head.to(hidden_ND.dtype)
    found_N = torch.empty(
        len(hidden_ND), dtype=torch.promote_types(hidden_ND.dtype, torch.float32), device=hidden_ND.device
    )
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_CV = hidden_ND.new_empty(min(chunk_tokens, len(hidden_ND)), len(head.weight_VD))
        for start in range(0, len(hidden_ND), chunk_tokens):
            target_C = target_N[start : start + chunk_tokens]
            product_CV = head.product(hidden_ND[start : start + chunk_tokens], logits_CV[: len(target_C)])
            for block in row_blocks(len(target_C), logits_CV.shape[1], hidden_ND.device.type):
                log_BV = log_softmax(head.finish_(product_CV[block]))
                found_N[start : start + chunk_tokens][block] = log_BV.gather(-1, target_C[block, None])[:, 0]
    return found_N
