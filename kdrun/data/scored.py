"""Rows as a padded batch, and which positions of it are scored. The only place that knows the shift and -100.

Shapes: B rows, T tokens of the longest row, N scored tokens of the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NOT_SCORED = -100


def collate(rows: Sequence[tuple[Any, int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """`ids_BT` and `labels_BT` (int64) of rows (ids, prompt_length), padded on the right.

    A label is the id at its own position (not shifted), and NOT_SCORED on the prompt and the padding. Both are known
    by length, never by id: pad is EOS for GPT-2, and a model that is not scored on EOS never learns to stop. A causal
    model needs no attention mask for such a batch: no scored position sees padding.

    Raises ValueError for no rows, or a row whose prompt is empty (nothing could predict its first token) or is longer
    than the row.
    """
    if not rows:
        raise ValueError("rows: there are none to collate")
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    labels_BT = torch.full((len(rows), longest), NOT_SCORED, dtype=torch.long)
    for b, (ids, prompt_length) in enumerate(rows):
        if not 1 <= prompt_length <= len(ids):
            raise ValueError(f"row {b}: prompt_length {prompt_length} must be from 1 to its {len(ids)} tokens")
        row = torch.as_tensor(ids, dtype=torch.long)
        ids_BT[b, : len(row)] = row
        labels_BT[b, prompt_length : len(row)] = row[prompt_length:]
    return ids_BT, labels_BT


def scored_positions(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """`index_N`: places in the flattened [B*T] hidden states that predict a scored token; `target_N`: that token's id.

    The state at t predicts the token at t + 1, so a row with a prompt of P tokens and L in all gives L - P positions,
    P - 1 to L - 2. In order of row, then time. Raises ValueError when a row scores its first token.
    """
    if (labels_BT[:, 0] != NOT_SCORED).any():
        raise ValueError("labels_BT: a row scores its first token, which no position predicts")
    b_N, t_N = (labels_BT[:, 1:] != NOT_SCORED).nonzero(as_tuple=True)
    return b_N * labels_BT.shape[1] + t_N, labels_BT[b_N, t_N + 1]
