"""The memory of a training step, found by running it on tensors that have shapes and no data.

What autograd saves and in which precision, what a fused attention kernel keeps, what checkpointing makes again: the
model's own code says it, and torch's fake tensors let it run without a weight. Only the objective is a stand-in, for
its code looks at values. Shapes: N scored tokens, C tokens of a chunk, V shared vocabulary, D and E widths.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdrun.data.batch import Group
from kdrun.evaluation.agreement import CHUNK_BYTES as VALIDATION_BYTES
from kdrun.losses.chunked import default_chunk_tokens
from kdrun.losses.row_blocks import BLOCK_BYTES, BLOCK_BYTES_ELSEWHERE
from kdrun.models.heads import head_of, scored_hidden_states
from kdrun.planning.training import MicroBatch, Training, largest_micro_batch
from kdrun.training.memory import recompute_activations

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORK_TENSORS = 8  # of one block of rows: losses in closed form hold 5 to 12 of them at once
# Of [C, V] float32 in validation: 10 are alive, but pieces of several sizes leave holes: 14 to 17 were resident.
VALIDATION_TENSORS = 16
# Bytes for each scored token and vocabulary entry of the first two rows: the canary `shift` takes the textbook's KL in
# float64, and kl_div holds five such tensors.
FIRST_LOOK_BYTES = 40
# The C library keeps what was freed of smaller pieces for pieces to come (native/pages.py); GPUs are not modelled so.
KEPT_BYTES = {"cpu": 32 * 2**20}
PARTS = ("weights", "optimiser", "gradients", "activations", "loss", "teacher", "validation", "first rows", "kept")

Asked = Callable[[Sequence[Group]], tuple[Tensor, Tensor]]


def made(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a config, without data; under a FakeTensorMode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def loading_bytes(training: Training) -> int:
    """Bytes of a machine's own memory while models are loaded, one after the other: a file is mapped, then copied."""
    sizes = []
    for config, dtype in ((training.student, "fp32"), (training.teacher, training.teacher_dtype)):
        loaded = config is not None and (dtype == "fp32" or training.use != "cached")
        sizes.append(parameters(config) * DTYPES[dtype].itemsize if loaded else 0)
    return max(2 * sizes[0], sizes[0] + 2 * sizes[1])


def parameters(config: Any) -> int:
    """All of a model's, those of a tied head once."""
    with FakeTensorMode():
        return sum(p.numel() for p in made(config).parameters())


def training_memory(training: Training, device_type: str) -> dict[str, int]:
    """Bytes of each of PARTS at the highest moment of a training; their sum is the peak.

    The look at the first rows, a step without optimiser state, a validation, and the largest forward and backward pass.
    "kept": freed, and held by the C library.
    """
    batch, amp = largest_micro_batch(training, device_type), training.precision == "bf16"
    with FakeTensorMode(), _Ledger(KEPT_BYTES.get(device_type, 0)) as ledger:
        with ledger.counting("weights"):
            student = made(training.student).train()
        if training.checkpointing:
            recompute_activations(student)
        with ledger.counting("teacher"):
            ask = _teacher(training)
        head_VD, groups = head_of(student).weight_VD, _groups(batch)
        rows = min(c.get_text_config().vocab_size for c in (training.student, training.teacher) if c is not None)
        with ledger.counting("first rows"):
            _hold(FIRST_LOOK_BYTES // 8, (int(training.scored[:2].sum()), rows), torch.float64)
        with ledger.counting("optimiser"):
            _moments = [torch.empty_like(p) for p in student.parameters() for _ in range(2)]
        with ledger.counting("validation"):
            chunk = min(sum(batch.scored), VALIDATION_BYTES // (8 * 4 * rows))
            _hold(VALIDATION_TENSORS, (chunk, rows), torch.float32)
        for _ in range(2 if batch.accumulates else 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                with ledger.counting("teacher"):
                    theirs = None if ask is None else ask(groups)
                with ledger.counting("activations"):
                    hidden_ND = scored_hidden_states(student, groups)
                with ledger.counting("loss"):
                    hidden_ND = hidden_ND.to(torch.bfloat16) if amp else hidden_ND
                    total = _objective(hidden_ND, head_VD, theirs, training, device_type)
            with ledger.counting("gradients"):
                total.backward()
            del theirs, hidden_ND, total
    return {part: ledger.at_peak[part] for part in PARTS}


def _hold(count: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """So many tensors at once, for a moment."""
    _held = [torch.empty(shape, dtype=dtype) for _ in range(count)]


def _groups(batch: MicroBatch) -> list[Group]:
    return [
        Group(torch.empty(size, dtype=torch.long), torch.empty(scored, dtype=torch.long))
        for size, scored in zip(batch.groups, batch.scored, strict=True)
    ]


def _teacher(training: Training) -> Asked | None:
    """groups -> (hidden_NE, weight_VE), what stays in memory made at once; None for a loss that asks no teacher."""
    config, dtype = training.teacher, DTYPES[training.teacher_dtype]
    if config is None:
        return None
    text = config.get_text_config()
    if training.use == "cached":
        weight_VE = torch.empty(text.vocab_size, text.hidden_size, dtype=dtype)
        return lambda groups: (
            torch.empty(sum(len(g.index_N) for g in groups), text.hidden_size, dtype=dtype), weight_VE
        )  # fmt: skip
    model = made(config, dtype).eval().requires_grad_(False)

    def run(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        # as teachers/live.py does: only float32 weights take part in autocast
        amp = training.precision == "bf16" and dtype is torch.float32
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            return scored_hidden_states(model, groups), head_of(model).weight_VD

    return run if training.use == "live" else lambda _: None  # type: ignore[return-value]


def _objective(
    hidden_ND: Tensor, weight_VD: Tensor, teacher: tuple[Tensor, Tensor] | None, training: Training, device_type: str
) -> Tensor:
    """A scalar that holds what losses/chunked.py holds: a chunk's buffers meanwhile, its gradients until backward."""
    rows = len(weight_VD) if teacher is None else min(len(weight_VD), len(teacher[1]))
    chunk = training.chunk_tokens or default_chunk_tokens(len(hidden_ND), rows, device_type)
    block = max(1, min(chunk, BLOCK_BYTES.get(device_type, BLOCK_BYTES_ELSEWHERE) // (4 * rows)))
    total: Tensor = _StandIn.apply(hidden_ND, weight_VD[:rows], teacher, min(chunk, len(hidden_ND)), block)
    return total


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - as autograd calls it
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, teacher: Any, chunk: int, block: int
    ) -> Tensor:
        rows, dtype = len(weight_VD), hidden_ND.dtype
        ctx.save_for_backward(*(torch.empty(x.shape) for x in (hidden_ND, weight_VD)))
        ctx.dtypes = dtype, weight_VD.dtype
        held = [hidden_ND.new_empty(chunk, rows), weight_VD.to(dtype)]  # .to copies where the dtype is another
        if teacher is not None:
            held += [hidden_ND.new_empty(chunk, rows), teacher[0].to(dtype), teacher[1][:rows].to(dtype)]
        if dtype != torch.float32:
            held.append(hidden_ND.new_empty(weight_VD.shape))  # a chunk's product, before it is added in float32
        held += [torch.empty(block, rows) for _ in range(WORK_TENSORS)]
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return *(g.to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)), None, None, None


class _Ledger(TorchDispatchMode):
    """Counts the storages that are alive, each under the part during which it came to be; of those up to kept_bytes
    large, the most that there ever were stay with the process."""

    def __init__(self, kept_bytes: int) -> None:
        super().__init__()
        self.part, self.kept_bytes = "weights", kept_bytes
        self.at_peak: Counter[str] = Counter()
        self._live: Counter[str] = Counter()
        self._small = self._most_small = self._peak = 0
        self._known: set[int] = set()

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """What is allocated meanwhile is of this part."""
        before, self.part = self.part, part
        yield
        self.part = before

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._known:
                weakref.finalize(storage, self._free, id(storage), self.part, storage.nbytes())
                self._known.add(id(storage))
                self._add(self.part, storage.nbytes())
        return result

    def _free(self, identity: int, part: str, num_bytes: int) -> None:
        self._known.discard(identity)
        self._add(part, -num_bytes)

    def _add(self, part: str, num_bytes: int) -> None:
        self._live[part] += num_bytes
        if abs(num_bytes) <= self.kept_bytes:
            self._small += num_bytes
            self._most_small = max(self._most_small, self._small)
        self._live["kept"] = self._most_small - self._small
        if (total := sum(self._live.values())) > self._peak:
            self._peak, self.at_peak = total, self._live.copy()
