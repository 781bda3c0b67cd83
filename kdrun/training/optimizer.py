"""AdamW with the decay where it belongs, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and norms (tensors of one dimension) do not. Fused where torch has it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def learning_rate(step: int, *, num_steps: int, lr: float, lr_min: float, schedule: str, warmup_steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0).

    Linear warm-up over `warmup_steps`, then constant, or a cosine from `lr` to `lr_min` over the remaining steps; the
    cosine of step s is that of torch's CosineAnnealingLR after s scheduler steps.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    share = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * share)) / 2
