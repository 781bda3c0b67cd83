"""Cross-entropy of the data: supervised fine-tuning, no teacher."""

from typing import ClassVar

import torch
from torch import Tensor

from kdrun.losses.interface import Loss


class Sft(Loss):
    """-log q(target), in nats."""

    needs_teacher: ClassVar[bool] = False

    def from_log_probs(self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None) -> Tensor:
        return cross_entropy(log_q_NV, self._checked(target_N))

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        target_N = self._checked(target_N)
        return cross_entropy(log_q_NV, target_N), cross_entropy_gradient(log_q_NV, target_N)

    def _checked(self, target_N: Tensor | None) -> Tensor:
        if target_N is None:
            raise ValueError("sft is the cross-entropy of the data: target_N is missing")
        return target_N


def cross_entropy(log_q_NV: Tensor, target_N: Tensor) -> Tensor:
    """-log q(target) in nats; infinite where the target's logit is -inf."""
    return -log_q_NV.gather(-1, target_N.unsqueeze(-1)).squeeze(-1)


def cross_entropy_gradient(log_q_NV: Tensor, target_N: Tensor) -> Tensor:
    """Gradient in the student's logits, q - onehot(target)."""
    gradient_NV = log_q_NV.exp()
    # not scatter_add_: index_put_ without accumulation is deterministic on CUDA (one target in each row)
    gradient_NV[torch.arange(len(target_N), device=target_N.device), target_N] -= 1
    return gradient_NV
