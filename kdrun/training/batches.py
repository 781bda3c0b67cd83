"""Which rows an optimiser step sees: a function of the seed and the step, so that resuming needs no loader state."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimiser steps of one pass: the last one may hold fewer rows, none is dropped."""
    return math.ceil(num_rows / batch_size)


def total_steps(num_rows: int, batch_size: int, *, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of a run: `epochs` passes, cut at `max_steps`."""
    steps = max(1, math.ceil(epochs * steps_per_epoch(num_rows, batch_size)))
    return steps if max_steps is None else min(steps, max_steps)


class RowOrder:
    """The rows of each optimiser step: every epoch a new permutation drawn from (seed, epoch)."""

    def __init__(self, num_rows: int, *, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of optimiser step `step` (from 0), on all ranks together."""
        epoch, batch = divmod(step, steps_per_epoch(self.num_rows, self.batch_size))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]


def micro_batches(rows: np.ndarray, micro_batch_size: int | None) -> Iterator[np.ndarray]:
    """Cut the rows of a step into pieces of at most `micro_batch_size` (None: one piece)."""
    size = micro_batch_size or max(len(rows), 1)
    for start in range(0, max(len(rows), 1), size):
        yield rows[start : start + size]
