"""A training in the plain values that its cost depends on, and its largest forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdrun.data.batch import GROUP_COST_ELSEWHERE, GROUP_COST_TOKENS, cheapest_cuts
from kdrun.training.batches import RowOrder, micro_batches, total_steps

STEPS_LOOKED_AT = 2000  # rows come in random order: later steps bring hardly a larger batch


@dataclass(frozen=True)
class Training:
    """student, teacher: transformers configs. use: of a teacher that is run, of which only the head is in memory, or
    that waits for the validation. lengths, scored: tokens of each row of an epoch. ranks: processes, which share the
    rows of a step."""

    student: Any
    teacher: Any | None
    use: Literal["live", "cached", "idle"]
    lengths: NDArray[np.int64]
    scored: NDArray[np.int64]
    epochs: float
    max_steps: int | None
    batch_size: int
    micro_batch_size: int | None
    seed: int
    precision: Literal["fp32", "bf16"]
    teacher_dtype: Literal["fp32", "bf16", "fp16"]
    checkpointing: bool
    chunk_tokens: int | None
    ranks: int = 1

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return total_steps(len(self.lengths), self.batch_size, epochs=self.epochs, max_steps=self.max_steps)

    def seen_rows(self) -> tuple[NDArray[np.int64], float]:
        """(row numbers, how often each is seen): of a part of an epoch its very rows, else all alike."""
        order = RowOrder(len(self.lengths), batch_size=self.batch_size, seed=self.seed)
        if self.num_steps * self.batch_size < len(self.lengths):
            return np.concatenate([order.rows(step) for step in range(self.num_steps)]), 1.0
        per_epoch = total_steps(len(self.lengths), self.batch_size, epochs=1, max_steps=None)
        return np.arange(len(self.lengths)), self.num_steps / per_epoch


@dataclass(frozen=True)
class MicroBatch:
    """(rows, positions) and scored tokens of each group of a forward pass; accumulates: the step has others."""

    groups: tuple[tuple[int, int], ...]
    scored: tuple[int, ...]
    accumulates: bool


def largest_micro_batch(training: Training, device_type: str) -> MicroBatch:
    """The forward pass with the most tokens on any rank, in groups as data/batch.py makes them on that device."""
    order = RowOrder(len(training.lengths), batch_size=training.batch_size, seed=training.seed)
    largest, most = np.empty(0, dtype=np.int64), -1
    for step in range(min(training.num_steps, STEPS_LOOKED_AT)):
        pieces: list[NDArray[np.int64]] = []
        for rank in range(training.ranks):
            rows = order.rows(step)[rank :: training.ranks]
            pieces += micro_batches(rows[np.argsort(training.lengths[rows], kind="stable")], training.micro_batch_size)
        tokens = [int(training.lengths[piece].sum()) for piece in pieces]
        if max(tokens) > most:
            most, largest = max(tokens), pieces[int(np.argmax(tokens))]
    lengths = training.lengths[largest].tolist()
    ends = cheapest_cuts(lengths, cost=GROUP_COST_TOKENS.get(device_type, GROUP_COST_ELSEWHERE))
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    return MicroBatch(
        tuple((part.stop - part.start, lengths[part.stop - 1]) for part in parts),
        tuple(int(training.scored[largest[part]].sum()) for part in parts),
        accumulates=len(largest) < math.ceil(min(training.batch_size, len(training.lengths)) / training.ranks),
    )


def remedies(training: Training) -> dict[str, Training]:
    """Word -> the training with it, for every word that may save memory and keeps the objective."""
    share = math.ceil(training.batch_size / training.ranks)
    size = min(training.micro_batch_size or share, share)
    found = {}
    while size > 1:
        size //= 2
        found[f"train.micro_batch_size={size}"] = replace(training, micro_batch_size=size)
    if not training.checkpointing:
        found["train.gradient_checkpointing=true"] = replace(training, checkpointing=True)
    if training.use == "live":
        found["teacher=cached"] = replace(training, use="cached")
        if training.teacher_dtype == "fp32":
            found["pair.teacher_dtype=bf16"] = replace(training, teacher_dtype="bf16")
    if training.precision == "fp32":
        found["train.precision=bf16"] = replace(training, precision="bf16")
    return found
