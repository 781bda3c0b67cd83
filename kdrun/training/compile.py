"""The student's body through torch.compile, and how often it was compiled anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdrun.models.heads import hidden_states


class CompiledBody:
    """`hidden_states`, compiled at its first call for rows and lengths of any number.

    The body alone: the heads and the loss are matrix products and kernels of their own, chunk by chunk.
    """

    def __init__(self, backend: str = "inductor") -> None:
        torch._dynamo.reset()  # a sweep's cells share a process, and after eight models torch gives up without a word
        self._compiled = torch.compile(hidden_states, dynamic=True, backend=backend)
        self._at_first: int | None = None

    def __call__(self, model: Any, ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D]."""
        hidden: Tensor = self._compiled(model, ids_BT)
        if self._at_first is None:
            self._at_first = _num_graphs()
        return hidden

    @property
    def recompilations(self) -> int:
        """Graphs that were compiled after the first call: each cost as long as the first did."""
        return 0 if self._at_first is None else _num_graphs() - self._at_first


def _num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
