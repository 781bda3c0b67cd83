"""The processes of one training (ranks): who this one is, and what all of them agree on.

torchrun, accelerate launch and kdrun itself say so in the environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
Everything here is at once done, and changes nothing, for a process that is alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
T = TypeVar("T")


def rank() -> int:
    """This process's number; rank 0 writes, and is what a process alone is."""
    return int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    """Processes of this training, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """While the body runs, this process is none of several: for work that one of them does for all."""
    kept = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def join(device: str) -> None:
    """Meet the other ranks, with this rank's own GPU as the current one where `device` is cuda."""
    import atexit

    import torch
    from torch import distributed

    if num_ranks() == 1 or distributed.is_initialized():
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)


def every_rank(value: T) -> list[T]:
    """The values of all ranks, in their order; each waits for all."""
    if num_ranks() == 1:
        return [value]
    from torch import distributed

    values: list[T] = [value] * num_ranks()
    distributed.all_gather_object(values, value)
    return values


def from_rank_zero(make: Callable[[], T]) -> T:
    """What rank 0 makes, and only it; the others wait for it."""
    return every_rank(make() if rank() == 0 else None)[0]  # type: ignore[return-value]
