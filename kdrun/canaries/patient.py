"""The parts of one training, with a few of its rows; and the same rows made once more, by hand.

By hand: one row at a time from its texts, without padding, batches, stored tokens or the code that shifts labels. What
the training computes must be the same. Shapes: L tokens of a row, P of its prompt, V shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrun.data.batch import Batch, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.data.examples import Example
from kdrun.data.template import render_prompt
from kdrun.losses import Loss
from kdrun.models.heads import head_of
from kdrun.teachers.live import LiveTeacher, Teacher
from kdrun.teachers.topk import TopkTeacher


@dataclass(frozen=True)
class HandRow:
    """A row from its texts: `ids` is prompt, response and end; the first `num_prompt` are not scored."""

    prompt: str
    response: str
    ids: list[int]
    num_prompt: int

    @property
    def scored(self) -> list[int]:
        """Response tokens and end."""
        return self.ids[self.num_prompt :]


def by_hand(
    examples: Sequence[Example], tokenizer: Any, *, template: str, max_prompt_tokens: int, max_tokens: int
) -> list[HandRow]:
    """One row an example."""
    rows = []
    for example in examples:
        prompt = render_prompt(example, template, tokenizer=tokenizer)
        words: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        head = tokenizer(prompt, split_special_tokens=template != "chat", **words)["input_ids"][-max_prompt_tokens:]
        response = tokenizer(example.response, split_special_tokens=True, **words)["input_ids"]
        whole = [*head, *response, tokenizer.eos_token_id]
        rows.append(HandRow(prompt, example.response, whole[:max_tokens], len(head)))
    return rows


@dataclass(frozen=True)
class Patient:
    """What is looked at: models and loss as the training has them, and the rows `numbers` of its set.

    `hand[i]` is row `numbers[i]`. The models are in evaluation mode; nothing here changes them. `shared`: vocabulary
    entries that both heads have. `mix`: kd_ratio, temperature, temperature_squared.
    """

    student: Any
    tokenizer: Any
    loss: Loss
    encoded: EncodedSet
    numbers: NDArray[np.int64]
    hand: list[HandRow]
    shared: int
    teacher: Teacher | TopkTeacher | None = None
    mix: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return head_of(self.student).weight_VD.device

    @property
    def rounding(self) -> float:
        """What 16 bits, or a GPU's kernels, may add to a quantity that is exact on a CPU in float32."""
        if torch.is_autocast_enabled(self.device.type) or head_of(self.student).weight_VD.dtype != torch.float32:
            return 1e-2
        return 0.0 if self.device.type == "cpu" else 1e-4

    def batch(self) -> Batch:
        """The rows as a step gets them."""
        return make_batch(self.encoded, self.numbers, pad_id=self.tokenizer.pad_token_id, device=self.device)

    def in_order(self, batch: Batch) -> list[HandRow]:
        """The rows by hand, in the batch's order."""
        at = {int(number): row for number, row in zip(self.numbers, self.hand, strict=True)}
        return [at[int(number)] for number in batch.rows]

    def itself(self) -> LiveTeacher:
        """The student as a teacher; it stays trainable."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        teacher = LiveTeacher(self.student, rows=self.shared)
        for parameter in trained:
            parameter.requires_grad_(True)
        return teacher


def own_logits(model: Any, rows: Sequence[HandRow], *, shared: int) -> Tensor:
    """Logits [N, V] in float32 by the model's own forward, one row at a time: position P - 1 predicts token P."""
    device = head_of(model).weight_VD.device
    parts = []
    for row in rows:
        ids_1L = torch.tensor([row.ids], device=device)
        logits_LV = model(input_ids=ids_1L, use_cache=False).logits[0]
        parts.append(logits_LV[row.num_prompt - 1 : len(row.ids) - 1, :shared].float())
    return torch.cat(parts)


def own_targets(rows: Sequence[HandRow], device: Any) -> Tensor:
    """Ids [N] of the scored tokens."""
    return torch.tensor([token for row in rows for token in row.scored], device=device)
