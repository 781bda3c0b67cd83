"""What one forward pass of training computes: student body, both heads and the loss, in one module.

In one module, so that a distributed wrapper sees every parameter used in its own forward. Shapes: N
scored tokens, E teacher width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdrun.data.batch import Batch
from kdrun.losses import Loss, chunked_objective
from kdrun.models.heads import Head, head_of, scored_hidden_states

Probe = Callable[[Tensor, Tensor], None]


class Teacher(Protocol):
    """Where the teacher's hidden states come from; the loss path does not know whether a model is behind it."""

    head: Head

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N, E] at the scored positions of a batch, in its order; no gradient."""
        ...


class LiveTeacher:
    """A teacher model run on every batch."""

    def __init__(self, model: Any, *, rows: int | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head = head_of(model) if rows is None else head_of(model).cut(rows)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        """One forward pass of the body a group, in the teacher's own dtype."""
        with torch.autocast(batch.target_N.device.type, enabled=False):
            return scored_hidden_states(self.model, batch.groups)


class StudentObjective(nn.Module):
    """The student and the loss. `forward` returns sums over the batch's scored tokens, in nats."""

    def __init__(
        self,
        student: Any,
        loss: Loss,
        *,
        rows: int | None = None,
        kd_ratio: float = 1.0,
        temperature: float = 1.0,
        temperature_squared: bool = True,
        chunk_tokens: int | None = None,
    ) -> None:
        """
        Args:
            rows: vocabulary rows shared with the teacher; None keeps the student's own.
        """
        super().__init__()
        self.student = student
        self.loss = loss
        self.rows = rows if rows is not None else head_of(student).weight_VD.shape[0]
        self.kd_ratio, self.temperature, self.temperature_squared = kd_ratio, temperature, temperature_squared
        self.chunk_tokens = chunk_tokens

    def forward(
        self, batch: Batch, teacher: Teacher | None = None, probe: Probe | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(total, cross-entropy, divergence): sums over scored tokens; only the total carries a gradient."""
        device_type = batch.target_N.device.type
        teacher_hidden_NE = teacher.hidden(batch) if teacher is not None else None
        student_hidden_ND = scored_hidden_states(self.student, batch.groups)
        if torch.is_autocast_enabled(device_type):  # the head's products in the body's precision
            student_hidden_ND = student_hidden_ND.to(torch.get_autocast_dtype(device_type))
        head = head_of(self.student).cut(self.rows)
        theirs = teacher.head if teacher is not None else None
        sums = chunked_objective(
            self.loss,
            student_hidden_ND,
            head.weight_VD,
            teacher_hidden_NE,
            theirs.weight_VD if theirs else None,
            batch.target_N,
            student_bias_V=head.bias_V,
            teacher_bias_V=theirs.bias_V if theirs else None,
            student_scale=head.scale,
            teacher_scale=theirs.scale if theirs else 1.0,
            student_softcap=head.softcap,
            teacher_softcap=theirs.softcap if theirs else None,
            chunk_tokens=self.chunk_tokens,
            probe=probe if theirs else None,
            kd_ratio=self.kd_ratio,
            temperature=self.temperature,
            temperature_squared=self.temperature_squared,
        )
        return sums.total, sums.cross_entropy, sums.divergence
