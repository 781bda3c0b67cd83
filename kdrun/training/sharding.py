"""Student and teacher sharded over the ranks by torch's FSDP2 (fully_shard), and whole again for a checkpoint.

Not by accelerate's preparation, which is for GPUs alone and takes the transformer for the root. Here the root is the
objective, whose forward is the student's whole use: embeddings, last norm and head are gathered for it once, and never
for a chunk. Gradients are reduced after every micro-batch, so that they are never whole either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as register
from torch.distributed.tensor import DTensor, distribute_tensor

from kdrun.models.heads import body_of
from kdrun.runs.ranks import num_ranks, rank
from kdrun.training.placement import Divided

T = TypeVar("T")


def _blocks(model: Any) -> list[nn.Module]:
    """The layers that a transformers model says must stay together."""
    return [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules or ())]


class Sharded(Divided):
    """The student is sharded over the ranks, with its gradients and optimiser."""

    def _place(self, make_optimizer: Callable[[], torch.optim.Optimizer]) -> tuple[Any, Any]:
        student = self.plain.student.cpu()
        mesh = init_device_mesh(self.device.type, (num_ranks(),))
        for block in _blocks(student):
            fully_shard(block, mesh=mesh)
        fully_shard(self.plain, mesh=mesh)
        register(self.plain, "call")
        return self.plain, make_optimizer()

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Embeddings and head stay gathered until the step's last one is over; gradients are reduced in each."""
        root: Any = self.plain
        root.set_reshard_after_backward(last, recurse=False)
        try:
            with self.accelerator.autocast():
                yield
        finally:
            root.set_reshard_after_backward(True, recurse=False)

    def _clip(self, limit: float) -> Tensor:
        return whole(super()._clip(limit))

    def with_student(self, work: Callable[[], T]) -> T:
        try:
            return self.plain.call(work)
        finally:
            self.objective.reshard()

    def _whole(self, parameter: Tensor) -> Tensor:
        return whole(parameter)

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in super().optimizer_state():
            gathered = whole(value)
            if rank() == 0:
                yield name, gathered

    def _part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
            return tensor
        local = tensor.to(parameter.device)
        return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard_teacher(model: Any, device: torch.device, *, offload: bool) -> None:
    """Shard the blocks of a teacher, which comes from the CPU, in place; embeddings, last norm and head are whole on
    every rank.

    Args:
        offload: keep the shards in the machine's memory until they are needed.
    """
    mesh = init_device_mesh(device.type, (num_ranks(),))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    blocks = _blocks(model)
    sharded = {parameter for block in blocks for parameter in block.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy)
    rest = {
        parameter for parameter in model.parameters() if parameter not in sharded and not isinstance(parameter, DTensor)
    }
    for parameter in rest:
        parameter.data = parameter.data.to(device)
    fully_shard(body_of(model), mesh=mesh, ignored_params=rest)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered by all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
