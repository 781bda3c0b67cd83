"""The key-value cache of a batch whose rows come and go.

Shapes: B rows, H heads, C columns, D width of a head. All rows end at the last column: a row of n cached tokens owns
the last n, and what stands before them is masked out. So a row that joins has only to be moved to the right end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE_COLUMNS = 64


class SpareLayer(DynamicLayer):
    """One layer's keys and values with columns to spare, so that a new token is written and the old ones stay.

    DynamicLayer makes a new tensor of all columns for every token: with 64 rows of 300 tokens and layers 768 wide,
    texts took twice as long. Layers with a sliding window keep all columns, too: the mask hides what is too far back.
    """

    keys: Tensor
    values: Tensor
    _stores: tuple[Tensor, ...]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.set(key_states, value_states)
            return self.keys, self.values
        start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if stop > self._stores[0].shape[2]:
            self._stores = tuple(_widen(x, right=stop - start + SPARE_COLUMNS) for x in (self.keys, self.values))
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:stop] = states
        self.keys, self.values = (store[:, :, :stop] for store in self._stores)
        return self.keys, self.values

    def set(self, keys: Tensor, values: Tensor) -> None:
        """Replace everything."""
        self.keys, self.values = keys, values
        self._stores = keys, values

    def keep(self, rows: Sequence[int], *, num_columns: int) -> None:
        """Drop all rows but these, and all columns but the last `num_columns`."""
        index_B = torch.tensor(rows, device=self.keys.device)
        self.set(*(x[:, :, -num_columns:].index_select(0, index_B) for x in (self.keys, self.values)))

    def join(self, other: SpareLayer) -> None:
        """Append the rows of another."""
        num_columns = max(self.keys.shape[2], other.keys.shape[2])
        pairs = (self.keys, other.keys), (self.values, other.values)
        self.set(*(torch.cat([_widen(x, left=num_columns - x.shape[2]) for x in pair]) for pair in pairs))


class Slots(Cache):
    """The cache of a whole model, empty at first."""

    layers: Any  # one SpareLayer each

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=SpareLayer)

    def keep(self, rows: Sequence[int], *, num_columns: int) -> None:
        """Drop all rows but these, and all columns but the last `num_columns`."""
        for layer in self.layers:
            layer.keep(rows, num_columns=num_columns)

    def join(self, other: Slots) -> None:
        """Append the rows of another."""
        for layer, other_layer in zip(self.layers, other.layers, strict=True):
            layer.join(other_layer)


def _widen(x_BHCD: Tensor, *, left: int = 0, right: int = 0) -> Tensor:
    """With columns of zeros at the ends: zeros, as a masked value of NaN would still be NaN times 0."""
    return torch.nn.functional.pad(x_BHCD, (0, 0, left, right))
