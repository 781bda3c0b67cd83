"""The one loop of the studies: a few numbers moved until a student's logits match a teacher's.

Shapes: N rows (distributions fitted side by side, or contexts of one map), V classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdrun.losses import Loss

Look = Callable[[int, Tensor], None]  # (updates done, student_logits_NV detached)


def fit(
    loss: Loss,
    student_logits: Callable[[], Tensor],
    teacher_logits_NV: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    look: Look | None = None,
) -> None:
    """Minimise the sum over rows of `loss`; `look`, if any, is called before every update and after the last one.

    The sum, so that rows which share no parameter do not feel one another: Adam and SGD move each as if it were alone.

    Args:
        student_logits: the student's logits from the parameters that `optimizer` holds, called once an update (LBFGS:
            as often as its line search asks).
    """

    def nats() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = loss(student_logits(), teacher_logits_NV).sum()
        total.backward()
        return total.detach()

    for step in range(num_steps + 1):
        if look is not None:
            with torch.no_grad():
                look(step, student_logits().detach())
        if step < num_steps:
            total = optimizer.step(nats)  # type: ignore[arg-type]  # a tensor is as good as a float
            loss.observe(float(total) / len(teacher_logits_NV), (step + 1) / num_steps)
