"""The teacher as the loss path sees it, and the one that is a model.

Shapes: N scored tokens of a batch, E teacher width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from kdrun.data.batch import Batch
from kdrun.errors import UserError
from kdrun.models.heads import Head, head_of, scored_hidden_states


class Teacher(Protocol):
    """Where the teacher's hidden states come from; the loss path does not know whether a model is behind it."""

    head: Head

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N, E] at the scored positions of a batch, in its order; no gradient."""
        ...


class LiveTeacher:
    """A teacher model run on every batch."""

    def __init__(self, model: Any, *, rows: int | None) -> None:
        """
        Args:
            rows: vocabulary rows shared with the student; None keeps the teacher's own.
        """
        self.model = model.eval().requires_grad_(False)
        self.head = head_of(model) if rows is None else head_of(model).cut(rows)

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> Tensor:
        """One forward pass of the body a group, in the teacher's own dtype; float32 takes part in training's autocast.

        The result is an inference tensor: autograd refuses to save it, which nothing here asks for.
        """
        device_type = batch.target_N.device.type
        autocast = torch.is_autocast_enabled(device_type) and self.head.weight_VD.dtype is torch.float32
        with torch.autocast(device_type, enabled=autocast, dtype=torch.get_autocast_dtype(device_type)):
            return scored_hidden_states(self.model, batch.groups)


def refuse_not_finite(values: Tensor, batch: Batch) -> None:
    """Every value of these scored tokens is finite.

    Raises:
        UserError: naming the teacher, and rows of the batch.
    """
    if not bool(values.isfinite().all()):
        rows = ", ".join(map(str, batch.rows[:3].tolist()))
        raise UserError(
            f"pair.teacher: its logits are NaN or infinite on scored tokens (in the batch of rows {rows}, ...), so the "
            "student was not updated from them; take a whole checkpoint, or type pair.teacher_dtype=fp32 if it is fp16"
        )
