"""Temporally adaptive interpolated distillation (Shing et al., TAID, arXiv 2501.16937).

The published code moves t at every micro-batch and leaves the entropy of p_t out of the value; here `observe` moves t
once per optimiser step, and the value is a true divergence.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kdrun.losses.fkl import forward_kl_with_gradient, kl
from kdrun.losses.interface import Loss, teacher_of
from kdrun.losses.parameters import checked_number


class Taid(Loss):
    """KL(p_t || student), p_t = softmax((1 - t) student logits + t teacher logits) without gradient.

    t_start, t_end: 0 <= t_start <= t_end <= 1. alpha >= 0: largest step of t. beta in [0, 1): momentum.
    """

    def __init__(self, *, t_start: float = 0.4, t_end: float = 1.0, alpha: float = 5e-4, beta: float = 0.99) -> None:
        self.t_end = checked_number("t_end", t_end, low=0, high=1, example=1)
        self.t_start = checked_number("t_start", t_start, low=0, high=self.t_end, example=min(0.4, self.t_end))
        self.alpha = checked_number("alpha", alpha, low=0, example=5e-4)
        self.beta = checked_number("beta", beta, low=0, high=1, high_open=True, example=0.99)
        self.t = self.t_start
        self.momentum = 0.0
        self.previous_nats: float | None = None

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return kl(self._log_target(log_q_NV, log_p_NV), log_q_NV)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return forward_kl_with_gradient(log_q_NV, self._log_target(log_q_NV, teacher_of(self, log_p_NV)))

    def _log_target(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        # log-probabilities serve as logits: p_t does not see the constants by which they differ
        return torch.log_softmax(torch.lerp(log_q_NV.detach(), log_p_NV, self.t), dim=-1)

    def observe(self, mean_nats: float, progress: float) -> dict[str, float]:
        """{t, momentum} after this step. The first loss only initialises."""
        previous, self.previous_nats = self.previous_nats, mean_nats
        if previous is not None:
            relative_change = (previous - mean_nats) / (previous + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * relative_change
            delta = self.alpha * _sigmoid(self.momentum) * (1 - self.t)
            target = self.t_start + (self.t_end - self.t_start) * progress
            self.t = min(self.t_end, max(target, self.t + delta))
        return {"t": self.t, "momentum": self.momentum}

    def state_dict(self) -> dict[str, float | None]:
        return {"t": self.t, "momentum": self.momentum, "previous_nats": self.previous_nats}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        super().load_state_dict(state)
        t, momentum = state["t"], state["momentum"]
        if t is None or momentum is None:
            raise ValueError("state of the taid loss: t and momentum must be numbers")
        self.t, self.momentum, self.previous_nats = t, momentum, state["previous_nats"]


def _sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)); tanh does not overflow when a loss that was nearly 0 has jumped."""
    return 0.5 * (1 + math.tanh(x / 2))
