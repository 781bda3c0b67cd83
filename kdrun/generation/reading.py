"""The model that reads the texts, or two whose distributions are mixed, with the caches of the rows being written.

Shapes: B rows, P tokens of the longest prompt, C columns of a cache, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdrun.generation.slots import Slots
from kdrun.native import fast_float32_products


@dataclass(frozen=True)
class Mixture:
    """A teacher mixed in: tokens come from share * teacher + (1 - share) * student (MiniLLM, arXiv 2306.08543, 2.2).

    Of both distributions only the first `rows` entries count, those that both heads have. Raises ValueError for a
    share outside [0, 1].
    """

    teacher: Any
    share: float
    rows: int

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: must be from 0 to 1")


class Reader:
    """Scores of the next token. The caches hold the rows' tokens but the last, which the next step reads.

    A model of share 0 reads nothing, and the other one's scores are handed on as they are.
    """

    def __init__(self, model: Any, mixed_with: Mixture | None) -> None:
        shares = [(model, 1.0)]
        if mixed_with is not None:
            shares = [(model, 1 - mixed_with.share), (mixed_with.teacher, mixed_with.share)]
        self._models = [(model, _takes_positions(model), share) for model, share in shares if share > 0]
        self._rows = None if mixed_with is None else mixed_with.rows
        self._caches = self._empty()

    def join(self, ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        """Read whole prompts, padded on the left, whose rows join the others; returns [B, V] of the new rows."""
        new = self._empty()
        scores_BV = self._read(new, ids, positions)
        if self._caches[0].get_seq_length():
            for cache, more in zip(self._caches, new, strict=True):
                cache.join(more)
        else:
            self._caches = new
        return scores_BV

    def step(self, ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        """Read one token of every row; returns [B, V]."""
        return self._read(self._caches, ids, positions)

    def keep(self, places: Sequence[int], *, num_columns: int) -> None:
        """Drop all rows but these, and all columns but the last `num_columns`."""
        if not places:
            self._caches = self._empty()
        for cache in self._caches:
            cache.keep(places, num_columns=num_columns)

    def _empty(self) -> list[Slots]:
        return [Slots() for _ in self._models]

    def _read(self, caches: list[Slots], ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        """Scores of the next token [B, V], float32; the tokens' keys and values are in the caches afterwards."""
        ids_BP, position_BP = torch.tensor([ids, positions], device=self._models[0][0].device)
        num_columns = caches[0].get_seq_length() + ids_BP.shape[1]
        # Left padding with a mask: right padding, or left padding without the mask, gave 1 right text of 8.
        mask_BC = torch.arange(num_columns, device=ids_BP.device) >= num_columns - 1 - position_BP[:, -1:]
        scores = []
        for (model, takes_positions, _), cache in zip(self._models, caches, strict=True):
            more = {"position_ids": position_BP} if takes_positions else {}
            more |= {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            output = model(input_ids=ids_BP, attention_mask=mask_BC, **more)
            scores.append(output.logits[:, -1, : self._rows].float())
        if len(scores) == 1:
            return scores[0]
        shares = [share for *_, share in self._models]
        # of logarithms, so that a later temperature finds what is too small for a float32
        return torch.logaddexp(*(x.log_softmax(-1) + math.log(share) for x, share in zip(scores, shares, strict=True)))


def _takes_positions(model: Any) -> bool:
    """Bloom and MPT take none; what a wrapper hands on (PEFT) has no names, and is given all."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in parameters)


@contextmanager
def ready(model: Any) -> Iterator[None]:
    """Inside, dropout is off and the head is fast; every submodule gets its own former mode back, for parts may be
    frozen in eval mode.

    The output head goes by the faster of torch's matrix libraries: on an AMD core 32 x 256 x 50257 takes 14 ms, not 22.
    The head only: attention would meet a new shape at every step, and the library keeps memory for each.
    """
    modes = [(module, module.training) for module in model.modules()]
    head = model.get_output_embeddings()
    with ExitStack() as products:
        hooks = (
            head.register_forward_pre_hook(lambda *_: products.enter_context(fast_float32_products())),
            head.register_forward_hook(lambda *_: products.close()),
        )
        model.eval()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, was_training in modes:
                module.training = was_training
