"""When memory does not suffice for a first step: what that looks like, what it is undone with, and what is next."""

from __future__ import annotations

import logging
import resource
import sys
from typing import Any

import torch

from kdrun.errors import UserError
from kdrun.losses import Loss

log = logging.getLogger(__name__)


def out_of_memory(error: Exception) -> bool:
    """Whether a device's allocator, the CPU's or Python's had no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


class MemoryMark:
    """The random streams and the loss's state before a step, to begin it again."""

    def __init__(self, loss: Loss, device: torch.device) -> None:
        self.loss, self.device = loss, device
        self._loss_state, self._cpu = loss.state_dict(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Put them back, and give cached memory back to the device."""
        self.loss.load_state_dict(self._loss_state)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self.device)
            torch.cuda.empty_cache()


def smaller_micro_batch(num_rows: int, error: Exception) -> int:
    """Half of the rows of a forward pass, which is said with the word that asks for it the next time.

    Raises:
        UserError: when it was one row already.
    """
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if num_rows <= 1:
        raise UserError(
            f"train.micro_batch_size=1: memory does not suffice for a step with one row at a time ({said}); lower "
            "data.max_tokens or train.chunk_tokens, or type train.gradient_checkpointing=true, teacher=cached or a "
            "smaller pair"
        )
    half = num_rows // 2
    log.warning(
        "out of memory in the first step with %d rows at a time: it is done again with %d, the same step; next time "
        "type train.micro_batch_size=%d (%s)", num_rows, half, half, said,
    )  # fmt: skip
    return half


def recompute_activations(model: Any) -> None:
    """Have a transformers model keep the inputs of its blocks alone, and compute the rest again for the gradient."""
    name = "activation_checkpointing_enable"  # newer than gradient_checkpointing_enable, which is going to go
    getattr(model, name, model.gradient_checkpointing_enable)()


def peak_memory_gib(device: str) -> float:
    """Highest memory so far in GiB: of the GPU's allocator, or of this process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
