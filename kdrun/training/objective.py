"""What one forward pass of training computes: student body, both heads and the loss, in one module.

In one module, so that a distributed wrapper sees every parameter used in its own forward. Shapes: B rows, T positions,
N scored tokens, E teacher width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdrun.data.scored import scored_positions
from kdrun.losses import Loss, chunked_objective
from kdrun.models.heads import Head, head_of, hidden_states

Probe = Callable[[Tensor, Tensor], None]


class Teacher(Protocol):
    """Where the teacher's hidden states come from; the loss path does not know whether a model is behind it."""

    head: Head

    def hidden(self, ids_BT: Tensor, index_N: Tensor) -> Tensor:
        """Hidden states [N, E] at the flat positions `index_N` of [B * T]; no gradient."""
        ...


class LiveTeacher:
    """A teacher model run on every batch."""

    def __init__(self, model: Any, *, rows: int | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head = head_of(model) if rows is None else head_of(model).cut(rows)

    @torch.no_grad()
    def hidden(self, ids_BT: Tensor, index_N: Tensor) -> Tensor:
        """One forward pass of the body, in the teacher's own dtype."""
        with torch.autocast(ids_BT.device.type, enabled=False):
            return hidden_states(self.model, ids_BT).flatten(0, 1)[index_N]


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
        self, ids_BT: Tensor, labels_BT: Tensor, teacher: Teacher | None = None, probe: Probe | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(total, cross-entropy, divergence): sums over scored tokens; only the total carries a gradient."""
        index_N, target_N = scored_positions(labels_BT)
        teacher_hidden_NE = teacher.hidden(ids_BT, index_N) if teacher is not None else None
        student_hidden_ND = hidden_states(self.student, ids_BT).flatten(0, 1)[index_N]
        if torch.is_autocast_enabled(ids_BT.device.type):  # the head's products in the body's precision
            student_hidden_ND = student_hidden_ND.to(torch.get_autocast_dtype(ids_BT.device.type))
        head = head_of(self.student).cut(self.rows)
        theirs = teacher.head if teacher is not None else None
        sums = chunked_objective(
            self.loss,
            student_hidden_ND,
            head.weight_VD,
            teacher_hidden_NE,
            theirs.weight_VD if theirs else None,
            target_N,
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
