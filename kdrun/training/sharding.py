"""Student and teacher sharded over the ranks by torch's FSDP2 (fully_shard), and whole again for a checkpoint.

Not by accelerate's preparation, which is for GPUs alone and takes the transformer for the root. Here the root is the
objective, whose forward is the student's whole use: embeddings, last norm and head are gathered for it once, and never
for a chunk. Gradients are reduced after every micro-batch, so that they are never whole either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as register
from torch.distributed.tensor import DTensor, distribute_tensor

from kdrun.models.heads import body_of
from kdrun.runs.ranks import num_ranks, rank
from kdrun.training.objective import StudentObjective

T = TypeVar("T")


def _blocks(model: Any) -> list[nn.Module]:
    """The layers that a transformers model says must stay together."""
    return [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules or ())]


def shard_student(objective: StudentObjective, device: torch.device) -> Any:
    """Shard the objective's student, which comes from the CPU, in place; returns a copy of it, whole, on rank 0's CPU
    (None elsewhere)."""
    student = objective.student.cpu()
    kept = copy.deepcopy(student) if rank() == 0 else None
    mesh = init_device_mesh(device.type, (num_ranks(),))
    for block in _blocks(student):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    register(objective, "call")
    return kept


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


def is_sharded(module: nn.Module) -> bool:
    """Whether fully_shard has been there."""
    return isinstance(module, FSDPModule)


@contextmanager
def kept_gathered(objective: nn.Module) -> Iterator[None]:
    """A micro-batch that is not the step's last: embeddings and head stay gathered for the next."""
    objective.set_reshard_after_backward(False, recurse=False)  # type: ignore[operator]
    try:
        yield
    finally:
        objective.set_reshard_after_backward(True, recurse=False)  # type: ignore[operator]


def with_student(objective: StudentObjective, work: Callable[[], T]) -> T:
    """What `work` returns, which takes the student as a plain model; all ranks must make the same forward passes."""
    try:
        return objective.call(work)
    finally:
        if isinstance(objective, FSDPModule):
            objective.reshard()


@torch.no_grad()
def gather(student: nn.Module, kept: nn.Module | None) -> None:
    """Bring rank 0's copy up to date; all ranks must call this."""
    for name, parameter in student.named_parameters():
        value = whole(parameter)
        if kept is not None:
            kept.get_parameter(name).copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered by all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, sharded where the parameter is; anything else as it is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    local = tensor.to(parameter.device)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
