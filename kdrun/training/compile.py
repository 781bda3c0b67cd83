"""The student's body and the loss through torch.compile, and how often they were compiled anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from kdrun.losses import Loss
from kdrun.models.heads import hidden_states

P = ParamSpec("P")
T = TypeVar("T")


class Compiled:
    """The parts of the objective that torch compiles, each at its first call, for rows and lengths of any number.

    `body`: student, ids_BT -> hidden states [B, T, D]. Between body and loss are the heads' matrix products,
    chunk by chunk, which are the same without.
    """

    def __init__(self, backend: str = "inductor") -> None:
        torch._dynamo.reset()  # a sweep's cells share a process, and after eight models torch gives up without a word
        self.body = _Counted(hidden_states, backend)
        self._traced_loss = _Counted(_with_gradient, backend)

    def with_gradient(
        self, loss: Loss, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`Loss.with_gradient`, compiled where a loss can be traced."""
        run = self._traced_loss if loss.traceable else _with_gradient
        # A copy of the targets, a few bytes: graphs are made anew for a view that begins elsewhere.
        return run(loss, log_q_NV, log_p_NV, None if target_N is None else target_N.clone())

    @property
    def recompilations(self) -> int:
        """Graphs that were compiled after a part's first call: each cost as long as the first did."""
        return self.body.recompilations + self._traced_loss.recompilations


class _Counted(Generic[P, T]):
    """A function, compiled, and the graphs that were compiled for it after its first call."""

    def __init__(self, function: Callable[P, T], backend: str) -> None:
        self._compiled: Callable[P, T] = torch.compile(function, dynamic=True, backend=backend)
        self._was_called = False
        self.recompilations = 0

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        before = _num_graphs()
        found = self._compiled(*args, **kwargs)
        self.recompilations += _num_graphs() - before if self._was_called else 0
        self._was_called = True
        return found


def _with_gradient(
    loss: Loss, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    return loss.with_gradient(log_q_NV, log_p_NV, target_N)


def _num_graphs() -> int:
    counted: Any = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return int(counted)
