"""Student sharded by DeepSpeed's ZeRO (arXiv 1910.02054): gradients and optimiser, and in stage 3 the weights.

By DeepSpeed's own engine and not through accelerate, which takes each backward pass for an update. AdamW is torch's and
the clipping ZeRO's. What a checkpoint holds is gathered whole, so that any launch goes on from it.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdrun.runs.ranks import num_ranks, rank
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Divided

log = logging.getLogger(__name__)
T = TypeVar("T")
BUCKET = 50_000_000  # gradients that are reduced at once: 0.2 GB beside the rest; by default it is ten times that


class Zero(Divided):
    """ZeRO stage 2 or 3."""

    def __init__(
        self,
        objective: StudentObjective,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        accelerator: Any,
        *,
        stage: int,
        clip_norm: float | None,
    ) -> None:
        """
        Args:
            stage: 2 or 3; clip_norm: of every update.
        """
        self.stage, self.clip_norm = stage, clip_norm
        super().__init__(objective, make_optimizer, accelerator)

    def _place(self, make_optimizer: Callable[[], torch.optim.Optimizer]) -> tuple[Any, Any]:
        entry = _Entry(self.plain.to(self.device), self.device.type)
        optimizer = make_optimizer()
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            log.info("DeepSpeed starts; where it never ran on a CPU, it compiles for a minute first")
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # It uses names of torch that are going to change, which is told once a call.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        import deepspeed

        head = self.plain.student.get_output_embeddings()
        for parameter in head.parameters(recurse=False):  # read by the objective, not by the head's own forward
            deepspeed.zero.register_external_parameter(entry, parameter)
        with redirect_stdout(io.StringIO()):
            self.engine, *_ = deepspeed.initialize(model=entry, optimizer=optimizer, config=self._settings())
        self.sums = self._begin_sums(optimizer)
        return self.engine, optimizer

    def _begin_sums(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
        """AdamW's sums, zero, for each of ZeRO's flat tensors of this rank.

        Before the first step, when ZeRO 2 would take note of its first group's alone (deepspeed 0.19.8).
        """
        zero = self.engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for tensor in flat:
            optimizer.state[tensor] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }
        if self.stage == 2:
            zero._lazy_init_hp_params_optimizer_state()  # lets safe_get_full_optimizer_state find them
        return [optimizer.state[tensor] for tensor in flat]

    def _settings(self) -> dict[str, Any]:
        """What DeepSpeed calls its config; sizes of batches are asked for, and not used."""
        bf16 = self.accelerator.mixed_precision == "bf16"
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.clip_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": self.stage, "reduce_bucket_size": BUCKET},
            # Weights and what ranks tell each other stay in float32.
            "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }

    # -- a step -------------------------------------------------------------------------------------------------------

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, total: Tensor) -> None:
        # Averaged over ranks, too.
        self.engine.backward(total * self.accelerator.num_processes, scale_wrt_gas=False)

    def update(self, clip_norm: float | None, check: Callable[[float], None]) -> float:
        """See Placement; ZeRO measures the norm in its update, and makes none of a gradient that is not finite."""
        if clip_norm != self.clip_norm:
            raise ValueError(f"clip_norm={clip_norm}: the engine was made for {self.clip_norm}")
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        check(math.inf if norm is None else float(norm))
        return float(norm)

    def discard(self) -> None:
        self.engine.optimizer.zero_grad()

    # -- beside the steps ---------------------------------------------------------------------------------------------

    def with_student(self, work: Callable[[], T]) -> T:
        found: T = self.engine(work)
        return found

    def _whole(self, parameter: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        found: Tensor = safe_get_full_fp32_param(parameter)
        return found

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        for index, parameter in enumerate(self.parameters):
            for key in ("exp_avg", "exp_avg_sq"):
                value = safe_get_full_optimizer_state(parameter, key)
                if rank() == 0:
                    yield f"{index}.{key}", value
            if rank() == 0:
                yield f"{index}.step", self.sums[0]["step"].clone()

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for sums in self.sums:
            sums["step"].copy_(tensors["0.step"])
        for index, parameter in enumerate(self.parameters):
            for key in ("exp_avg", "exp_avg_sq"):
                whole = tensors[f"{index}.{key}"].to(self.device)
                if self.stage == 2:
                    safe_set_full_optimizer_state(parameter, whole, key)
                    continue
                # Of stage 3 that one forgets the last rank's padding (deepspeed 0.19.8).
                size = parameter.ds_tensor.numel()
                padded = nn.functional.pad(whole.flatten(), (0, size * num_ranks() - whole.numel()))
                safe_set_local_optimizer_state(parameter, padded[rank() * size :][:size], key)


class _Entry(nn.Module):
    """The engine's root: a forward pass of the objective, or other work with its student, during which ZeRO gathers
    what the student's layers and head need."""

    def __init__(self, objective: StudentObjective, device_type: str) -> None:
        super().__init__()
        self.objective, self.device_type = objective, device_type

    def forward(self, work: Any, *arguments: Any) -> Any:
        if not callable(work):
            return self.objective(work, *arguments)
        with torch.autocast(self.device_type, enabled=False):  # the engine's is for the steps
            return work()
