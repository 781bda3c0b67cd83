"""The rows of one forward pass, in groups of like length, so that little padding goes through the models.

Shapes: B rows of a group, T tokens of its longest row, N scored tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrun.data.encoding import EncodedSet
from kdrun.data.scored import collate, scored_positions

# What one more forward and backward pass costs, in tokens of padding. On two cores a pass of the 4 x 256 student over 8
# tokens took 23 ms (most of it the gradient of 50257 embeddings), and every token more 0.14 ms; a GPU must be kept busy
# with thousands of tokens (not measured).
GROUP_COST_TOKENS = {"cpu": 128}
GROUP_COST_ELSEWHERE = 4096


class Group(NamedTuple):
    """Rows of like length, padded on the right to the longest; index_N are the flat positions that predict a token."""

    ids_BT: Tensor
    index_N: Tensor


@dataclass(frozen=True)
class Batch:
    """Row numbers from short to long, their groups, and the id at every scored token in the same order.

    `lengths`: scored tokens of each row; `writer`: who wrote them (data, teacher, student or corpus).
    """

    rows: NDArray[np.int64]
    groups: tuple[Group, ...]
    target_N: Tensor
    lengths: tuple[int, ...]
    writer: str = "data"

    @property
    def num_scored(self) -> int:
        """Scored tokens of all rows."""
        return len(self.target_N)

    @property
    def num_positions(self) -> int:
        """Positions that go through the models, padding included."""
        return sum(group.ids_BT.numel() for group in self.groups)

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on a device."""
        groups = tuple(Group(g.ids_BT.to(device), g.index_N.to(device)) for g in self.groups)
        return replace(self, groups=groups, target_N=self.target_N.to(device))

    def unscored(self) -> Batch:
        """One row of it with nothing scored: what a rank without a row takes part with."""
        return Batch(self.rows[:0], (self._empty(),), self.target_N[:0], (), self.writer)

    def in_groups(self, count: int) -> Batch:
        """The same in at least `count` groups; what is added has one row and nothing scored."""
        return replace(self, groups=(*self.groups, *[self._empty()] * (count - len(self.groups))))

    def _empty(self) -> Group:
        first = self.groups[0]
        return Group(first.ids_BT[:1], first.index_N[:0])


def make_batch(
    encoded: EncodedSet, rows: Sequence[int] | NDArray[np.int64], *, pad_id: int, device: Any, writer: str = "data"
) -> Batch:
    """These rows of an encoded set, sorted by length and cut into groups where that saves more than a pass costs.

    The order of the scored tokens is that of `rows` in the batch, then of time. Raises ValueError for no rows.
    """
    chosen = np.asarray(rows, dtype=np.int64)
    chosen = chosen[np.argsort(encoded.lengths[chosen], kind="stable")]
    cost = GROUP_COST_TOKENS.get(torch.device(device).type, GROUP_COST_ELSEWHERE)
    groups, targets = [], []
    start = 0
    for end in cheapest_cuts(encoded.lengths[chosen].tolist(), cost=cost):
        ids_BT, labels_BT = collate([encoded.row(int(i)) for i in chosen[start:end]], pad_id)
        index_N, target_N = scored_positions(labels_BT)
        groups.append(Group(ids_BT, index_N))
        targets.append(target_N)
        start = end
    if not groups:
        raise ValueError("rows: there are none to batch")
    lengths = tuple(encoded.scored_lengths[chosen].tolist())
    return Batch(chosen, tuple(groups), torch.cat(targets), lengths, writer).to(device)


def cheapest_cuts(lengths: Sequence[int], *, cost: int) -> list[int]:
    """Where to cut rows of ascending length: the end of each group, so that padded tokens + cost a group are least.

    Exact, by dynamic programming; of two equal choices the one with fewer groups.
    """
    best: list[tuple[int, int, list[int]]] = [(0, 0, [])]  # tokens, groups, ends, for the first k rows
    for end in range(1, len(lengths) + 1):
        candidates = (
            (tokens + (end - start) * lengths[end - 1] + cost, groups + 1, start)
            for start, (tokens, groups, _) in enumerate(best)
        )
        tokens, groups, start = min(candidates)
        best.append((tokens, groups, [*best[start][2], end]))
    return best[-1][2]
