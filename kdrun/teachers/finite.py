"""Whether a teacher's distribution is one: asked when a loss is not finite.

Shapes: N scored tokens of a batch, E teacher width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kdrun.data.batch import Batch
from kdrun.teachers.live import Teacher, refuse_not_finite
from kdrun.teachers.topk import TopkTeacher

CHUNK_TOKENS = 256  # projected at a time


@torch.no_grad()
def blame_teacher(teacher: Teacher | TopkTeacher | None, batches: Iterable[Batch]) -> None:
    """Look through the teacher's logits on these batches.

    Raises:
        UserError: when one is NaN or infinite.
    """
    for batch in batches if teacher is not None else ():
        refuse_not_finite(_values(teacher, batch), batch)  # type: ignore[arg-type]


def _values(teacher: Teacher | TopkTeacher, batch: Batch) -> Tensor:
    """A number [N] a token that is finite when all of its logits are."""
    if isinstance(teacher, TopkTeacher):
        return teacher.buckets(batch)[1].exp().sum(-1)
    hidden_NE = teacher.hidden(batch)
    parts = [teacher.head(chunk_CE).float().abs().amax(-1) for chunk_CE in hidden_NE.split(CHUNK_TOKENS)]
    return torch.cat(parts) if parts else hidden_NE.new_zeros(0)
