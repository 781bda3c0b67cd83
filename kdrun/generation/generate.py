"""Texts written by a causal language model, by the protocol of the distillation papers.

Shapes: B rows of the batch, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.errors import UserError
from kdrun.generation.reading import Mixture, Reader, ready
from kdrun.generation.sampling import (
    NOT_A_NUMBER,
    RepeatedNgrams,
    Sampling,
    argmax,
    inverse_cdf,
    resolved_settings,
    score_changes,
)

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
    seed: int | Sequence[int],
    indices: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
    mixed_with: Mixture | None = None,
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
        seed: with (seed, step), prompt i draws from (seed, step, i). numpy takes (10, 3) and (10, 3, 0) for the same.
        indices: the i of each prompt, where the prompts are a part of the data or in another order; None: 0, 1, ...
        limits: at most this many new tokens of each prompt; None: max_new_tokens of all.
        mixed_with: a teacher that writes along: `sampling` changes the mixture of both distributions.
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
    limits = [min(limit, sampling.max_new_tokens) for limit in limits]
    sizes = [(len(prompt), limit) for prompt, limit in zip(prompts, limits, strict=True)]
    models = [model] if mixed_with is None or mixed_with.teacher is model else [model, mixed_with.teacher]
    for each in models:
        refuse_overrun(each, *max(sizes, key=sum, default=(0, 0)))
        _refuse_other_state(each)
    seeds = np.atleast_1d(seed).tolist()
    rows = [_Row(prompt, limit, (*seeds, i)) for i, prompt, limit in zip(indices, prompts, limits, strict=True)]
    with torch.no_grad(), ExitStack() as stack:
        for each in models:
            stack.enter_context(ready(each))
        writer = _Writer(Reader(model, mixed_with), sampling, eos_id=eos_id, pad_id=pad_id, advance=advance)
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

    def __init__(self, prompt: Sequence[int], limit: int, stream: tuple[int, ...]) -> None:
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
    """The batch: its rows, and the reader of all their tokens."""

    def __init__(
        self,
        reader: Reader,
        sampling: Sampling,
        *,
        eos_id: int,
        pad_id: int,
        advance: Callable[[int, int], None] | None,
    ) -> None:
        self._reader, self._eos_id, self._pad_id = reader, eos_id, pad_id
        self._advance = advance if advance is not None else lambda *_: None
        self._sampling, self._change = sampling, score_changes(sampling)
        self._rows: list[_Row] = []

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
        self._reader.keep(places, num_columns=max((len(row.ids) for row in self._rows), default=1) - 1)

    def _admit(self, rows: list[_Row]) -> None:
        """Read prompts, write the first token of each, and give them places in the batch."""
        width = max(len(row.ids) for row in rows)
        ids = [[self._pad_id] * (width - len(row.ids)) + row.ids for row in rows]
        positions = [[*[0] * (width - len(row.ids)), *range(len(row.ids))] for row in rows]
        for row in rows:
            row.begin(self._sampling)
        self._draw(rows, self._reader.join(ids, positions))
        self._rows = self._rows + rows

    def _step(self) -> None:
        """Write one token of every row, finished ones included: they stay where they are, and its token is dropped."""
        ids, positions = [row.ids[-1:] for row in self._rows], [[len(row.ids) - 1] for row in self._rows]
        self._draw(self._rows, self._reader.step(ids, positions))

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
