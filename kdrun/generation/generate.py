"""Texts written by a causal language model, by the protocol of the distillation papers.

Shapes: B rows of the batch, P tokens of its longest prompt, C columns of its cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.errors import UserError
from kdrun.generation.sampling import (
    NOT_A_NUMBER,
    RepeatedNgrams,
    Sampling,
    argmax,
    inverse_cdf,
    resolved_settings,
    score_changes,
)
from kdrun.generation.slots import Slots
from kdrun.native import fast_float32_products

__all__ = ["Generation", "Sampling", "decode", "generate", "resolved_settings"]

# Finished rows leave when a quarter of the batch is finished. Earlier, each leaving copies the cache for little; later,
# the finished ones cost more than the copy. From 0.6 to 0.9 the speed is the same within the noise.
LIVE_SHARE = 0.75
PREFILL_ROWS = 16  # prompts read in one pass: of nearly one length, as they come sorted, so that little is padding


@dataclass(frozen=True)
class Generation:
    """One text: its tokens without EOS and padding; `finished` when EOS was emitted, not cut by max_new_tokens."""

    token_ids: list[int]
    finished: bool


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_id: int,
    pad_id: int,
    batch_size: int,
    seed: int,
    indices: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Return one Generation a prompt, in the order of the prompts.

    The longest prompts begin; as soon as a quarter of the batch is finished, those rows leave and the next prompts take
    their places, so that `batch_size` texts are being written until none is waiting.

    Random numbers: prompt i draws from its own stream (seed, i), so its text does not depend on the batch size, on the
    other prompts, or on how often anything was drawn before (up to float rounding of the logits in batches of another
    shape), and no global random state is read or changed. transformers' own sampling draws one multinomial for the
    whole batch: there the same seed with batch 4 and batch 6 gave 0 equal texts of 12.

    Args:
        model: a transformers causal model with a key-value cache; it writes in eval mode, and its modes come back as
            they were. Nothing of its generation_config is read.
        pad_id: what stands before short prompts, masked out; may be equal to `eos_id`.
        indices: the i of each prompt, where the prompts are a part of the data or in another order; None: 0, 1, ...
        limits: at most this many new tokens of each prompt; None: max_new_tokens of all.
        advance: called with the numbers of texts finished and of their tokens written since its last call.

    Raises:
        UserError: the longest prompt and max_new_tokens overrun the model's positions (an IndexError deep inside GPT-2
            otherwise); the model's state is not only keys and values.
        FloatingPointError: the model's logits are NaN, for a text drawn from them would look like any other.
        ValueError: an empty prompt, a batch size or a limit below 1.
    """
    indices = range(len(prompts)) if indices is None else indices
    limits = [sampling.max_new_tokens] * len(prompts) if limits is None else limits
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if any(limit < 1 for limit in limits):
        raise ValueError(f"limits: {min(limits)} is below 1")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"prompt {[len(prompt) for prompt in prompts].index(0)} has no token: nothing to continue")
    refuse_overrun(model, max(map(len, prompts), default=0), sampling.max_new_tokens)
    _refuse_other_state(model)
    rows = [
        _Row(prompt, min(limit, sampling.max_new_tokens), (seed, i))
        for i, prompt, limit in zip(indices, prompts, limits, strict=True)
    ]
    with torch.no_grad(), _eval_mode(model), _fast_head(model):
        writer = _Writer(model, sampling, eos_id=eos_id, pad_id=pad_id, advance=advance)
        writer.write(deque(sorted(rows, key=lambda row: -len(row.ids))), batch_size)
    return [Generation(row.new_ids, row.finished) for row in rows]


def decode(generations: Sequence[Generation], tokenizer: Any) -> list[str]:
    """Return the texts: special tokens skipped, spaces kept, both ends stripped (as MiniLLM's evaluation does)."""
    texts = tokenizer.batch_decode(
        [generation.token_ids for generation in generations],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [text.strip() for text in texts]


class _Row:
    """A prompt and what is written after it."""

    def __init__(self, prompt: Sequence[int], limit: int, stream: tuple[int, int]) -> None:
        self.ids, self._num_prompt, self._limit, self._stream = list(prompt), len(prompt), limit, stream
        self.live, self.finished = True, False

    @property
    def new_ids(self) -> list[int]:
        return self.ids[self._num_prompt :]

    def begin(self, sampling: Sampling) -> None:
        """What is needed while the row is in the batch, and not before."""
        self.uniforms = np.random.default_rng(self._stream).random(0 if sampling.greedy else self._limit)
        self.ngrams = RepeatedNgrams(sampling.no_repeat_ngram_size, self.ids)

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return float(self.uniforms[len(self.ids) - self._num_prompt]) if self.live else 0.0

    @property
    def banned(self) -> list[int]:
        return self.ngrams.banned(self.ids) if self.live else []

    def append(self, token: int, eos_id: int) -> None:
        """Take the next token; after the end all are thrown away until the row leaves."""
        if not self.live:
            return
        if token == NOT_A_NUMBER:
            raise FloatingPointError("the model's logits are NaN: its weights are broken or its dtype overflows")
        if token == eos_id:
            self.finished = True
        else:
            self.ids.append(token)
            self.ngrams.add(self.ids)
        if self.finished or len(self.ids) - self._num_prompt == self._limit:
            self.live = False
            del self.uniforms, self.ngrams  # 10,000 prompts with their n-grams would hold a gigabyte at the end


class _Writer:
    """The batch: its rows, and the cache of all their tokens but the last, which the next forward pass takes."""

    def __init__(
        self, model: Any, sampling: Sampling, *, eos_id: int, pad_id: int, advance: Callable[[int, int], None] | None
    ) -> None:
        self._model, self._eos_id, self._pad_id = model, eos_id, pad_id
        self._advance = advance if advance is not None else lambda *_: None
        self._sampling, self._change = sampling, score_changes(sampling)
        # Bloom and MPT take none; what a wrapper hands on (PEFT) has no names, and is given all
        parameters = inspect.signature(model.forward).parameters.values()
        self._takes_positions = any(p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in parameters)
        self._rows: list[_Row] = []
        self._cache = Slots()

    def write(self, waiting: deque[_Row], batch_size: int) -> None:
        """Write all rows to their ends."""
        while waiting or self._rows:
            live = [place for place, row in enumerate(self._rows) if row.live]
            if len(live) > LIVE_SHARE * len(self._rows):
                self._step()
                continue
            self._drop_all_but(live)
            while waiting and len(self._rows) < batch_size:
                num_rows = min(len(waiting), batch_size - len(self._rows), PREFILL_ROWS)
                self._admit([waiting.popleft() for _ in range(num_rows)])

    def _drop_all_but(self, places: list[int]) -> None:
        self._rows = [self._rows[place] for place in places]
        if self._rows:
            self._cache.keep(places, num_columns=max(len(row.ids) for row in self._rows) - 1)
        else:
            self._cache = Slots()

    def _admit(self, rows: list[_Row]) -> None:
        """Read prompts, write the first token of each, and give them places in the batch."""
        width = max(len(row.ids) for row in rows)
        ids_BP = [[self._pad_id] * (width - len(row.ids)) + row.ids for row in rows]
        position_BP = [[*[0] * (width - len(row.ids)), *range(len(row.ids))] for row in rows]
        cache = Slots()
        for row in rows:
            row.begin(self._sampling)
        self._draw(rows, self._forward(cache, ids_BP, position_BP))
        if self._rows:
            self._cache.join(cache)
        else:
            self._cache = cache
        self._rows = self._rows + rows

    def _step(self) -> None:
        """Write one token of every row, finished ones included: they stay where they are, and its token is dropped."""
        ids_B1, position_B1 = [row.ids[-1:] for row in self._rows], [[len(row.ids) - 1] for row in self._rows]
        self._draw(self._rows, self._forward(self._cache, ids_B1, position_B1))

    def _forward(self, cache: Slots, ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        """Scores of the next token [B, V], float32; the tokens' keys and values are in the cache afterwards."""
        ids_BP, position_BP = torch.tensor([ids, positions], device=self._model.device)
        length_B1 = position_BP[:, -1:] + 1
        num_columns = cache.get_seq_length() + ids_BP.shape[1]
        # Left padding with a mask: right padding, or left padding without the mask, gave 1 right text of 8.
        mask_BC = torch.arange(num_columns, device=ids_BP.device) >= num_columns - length_B1
        more = {"position_ids": position_BP} if self._takes_positions else {}
        output = self._model(
            input_ids=ids_BP, attention_mask=mask_BC, past_key_values=cache, use_cache=True, logits_to_keep=1, **more
        )
        scores_BV: Tensor = output.logits[:, -1].float()
        return scores_BV

    def _draw(self, rows: list[_Row], scores_BV: Tensor) -> None:
        """Draw the next token of every row, and tell of the progress."""
        texts = [row.ids for row in rows]
        scores_BV = self._change(scores_BV, texts, [row.banned for row in rows])
        if self._sampling.greedy:
            token_B = argmax(scores_BV)
        else:
            uniform_B1 = torch.tensor([[row.uniform] for row in rows], dtype=torch.float64, device=scores_BV.device)
            token_B = inverse_cdf(scores_BV, uniform_B1)
        num_live, num_tokens = sum(row.live for row in rows), sum(map(len, texts))
        for row, token in zip(rows, token_B.tolist(), strict=True):  # the step's one wait for the device
            row.append(token, self._eos_id)
        self._advance(num_live - sum(row.live for row in rows), sum(map(len, texts)) - num_tokens)


@contextmanager
def _fast_head(model: Any) -> Iterator[None]:
    """The output head by the faster of torch's matrix libraries: on an AMD core 32 x 256 x 50257 takes 14 ms, not 22.

    The head only: attention would meet a new shape at every step, and the library keeps memory for each.
    """
    head = model.get_output_embeddings()
    with ExitStack() as products:
        hooks = (
            head.register_forward_pre_hook(lambda *_: products.enter_context(fast_float32_products())),
            head.register_forward_hook(lambda *_: products.close()),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def refuse_overrun(model: Any, longest: int, max_new_tokens: int) -> None:
    """Raise UserError when a prompt of `longest` tokens leaves no room for the new ones in the model's positions."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None or longest + max_new_tokens <= context:
        return
    room = context - longest
    remedy = f"type eval.max_new_tokens={room} or less, or drop" if room >= 1 else "drop"
    raise UserError(
        f"eval.max_new_tokens={max_new_tokens}: the longest prompt has {longest} tokens and the model has {context} "
        f"positions, so at most {max(room, 0)} new tokens fit; {remedy} the long prompts"
    )


def _refuse_other_state(model: Any) -> None:
    """Recurrent layers (Mamba, linear attention) keep a state that rows cannot be moved in as in keys and values."""
    from transformers import DynamicCache

    if any(DynamicCache(config=model.config).is_linear) or getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{type(model).__name__}: generation needs a decoder whose whole state is keys and values; "
            "recurrent and encoder-decoder models are not supported"
        )


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Turn dropout off inside; give every submodule its own former mode back (parts may be frozen in eval mode)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
