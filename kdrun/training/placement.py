"""Where the student, its gradients and its optimiser are over the ranks of a training, and what that asks of a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdrun.runs.ranks import rank
from kdrun.training.objective import StudentObjective

T = TypeVar("T")


class Placement:
    """Every rank holds all, or there is one: accelerate's, which is DDP for several.

    `plain`: the objective; `objective`: what to call in its place, for a forward pass of a step; `in_step`: whether
    all ranks must make the same passes, in the same order; `device`: of the batches.
    """

    in_step = False

    def __init__(
        self, objective: StudentObjective, make_optimizer: Callable[[], torch.optim.Optimizer], accelerator: Any
    ) -> None:
        """
        Args:
            make_optimizer: called when the student's parameters are where they stay.
        """
        self.plain, self.accelerator = objective, accelerator
        self.device: torch.device = accelerator.device
        self.objective: Any
        self.optimizer: Any
        self.objective, self.optimizer = self._place(make_optimizer)

    def _place(self, make_optimizer: Callable[[], torch.optim.Optimizer]) -> tuple[Any, Any]:
        self.plain.to(self.device)
        placed: tuple[Any, Any] = self.accelerator.prepare(self.plain, make_optimizer())
        return placed

    # -- a step -------------------------------------------------------------------------------------------------------

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """For a forward and backward pass: gradients meet those of other ranks in a step's last one."""
        return nullcontext() if last else self.accelerator.no_sync(self.objective)

    def backward(self, total: Tensor) -> None:
        """Add the gradient of this rank's share of a step, in nats over all ranks' tokens."""
        # A distributed wrapper averages gradients over ranks: undo it, the division is by all ranks' count.
        self.accelerator.backward(total * self.accelerator.num_processes)

    def update(self, clip_norm: float | None, check: Callable[[float], None]) -> float:
        """Change the weights by the gradient, cut to a norm; returns the norm that it had, over all ranks.

        Args:
            check: given the norm; what it raises leaves the weights as they are.
        """
        limit = math.inf if clip_norm is None else clip_norm
        norm = float(self._clip(limit))
        check(norm)
        self.optimizer.step()
        self.discard()
        return norm

    def _clip(self, limit: float) -> Tensor:
        norm: Tensor = self.accelerator.clip_grad_norm_(self.objective.parameters(), limit)
        return norm

    def discard(self) -> None:
        """Forget the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    # -- beside the steps; all ranks must call these together --------------------------------------------------------

    def with_student(self, work: Callable[[], T]) -> T:
        """What `work` returns, which takes the student as a plain model, by the same passes on every rank."""
        return work()

    def student(self) -> Any:
        """The student as it is now, whole; None on a rank that has no whole one."""
        return self.plain.student

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """("parameter's number.key", whole tensor) of what the optimiser remembers; of rank 0 alone where sharded."""
        for index, entry in self.optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                yield f"{index}.{key}", value

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `optimizer_state` gave, for whatever placement it was."""
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = self._part(tensor, parameters[int(index)])
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of a whole tensor that belongs to a parameter."""
        return tensor


class Divided(Placement):
    """What the ranks divide among them; rank 0 keeps a whole copy of the student on the CPU, for checkpoints."""

    in_step = True

    def __init__(
        self, objective: StudentObjective, make_optimizer: Callable[[], torch.optim.Optimizer], accelerator: Any
    ) -> None:
        self.kept = copy.deepcopy(objective.student).cpu() if rank() == 0 else None
        super().__init__(objective, make_optimizer, accelerator)

    @torch.no_grad()
    def student(self) -> Any:
        """Rank 0's copy, brought up to date."""
        for name, parameter in self.plain.student.named_parameters():
            value = self._whole(parameter)
            if self.kept is not None:
                self.kept.get_parameter(name).copy_(value)
        return self.kept

    def _whole(self, parameter: Tensor) -> Tensor:
        """A parameter, gathered by all ranks."""
        raise NotImplementedError
