"""Texts written by a causal language model, by the protocol of the distillation papers.

Shapes: B prompts of a batch, P tokens of its longest prompt, S new tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Every value is in force exactly as it stands here, whatever the checkpoint says.

    `temperature` 0 is greedy, and then `top_k` and `top_p` mean nothing. Off is `top_k` 0, `top_p` 1,
    `repetition_penalty` 1, `no_repeat_ngram_size` 0. The penalty and the n-gram ban count the prompt's tokens too.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1", 256),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more", 1.0),
            "top_k": (self.top_k >= 0, "0 (off) or more", 0),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)", 1.0),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0; 1 is off", 1.0),
            # 1 would ban every token of the prompt and, where pad = eos, the end of the text.
            "no_repeat_ngram_size": (self.no_repeat_ngram_size in (0, *range(2, 10_000)), "0 (off) or 2 and more", 0),
        }
        for key, (is_allowed, words, example) in allowed.items():
            if not is_allowed:
                raise UserError(
                    f"eval.{key}={getattr(self, key)}: must be {words}; type for example eval.{key}={example}"
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Generation:
    """One text: its tokens without EOS and padding; `finished` when EOS was emitted, not cut by max_new_tokens."""

    token_ids: list[int]
    finished: bool


def resolved_settings(sampling: Sampling) -> dict[str, Any]:
    """Return all that decides the texts beside model, prompts and seed, for the run record."""
    sampler = "argmax" if sampling.greedy else "inverse CDF, one numpy stream for each (seed, index of the prompt)"
    return {**asdict(sampling), "do_sample": not sampling.greedy, "num_beams": 1, "sampler": sampler}


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_id: int,
    pad_id: int,
    batch_size: int,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Return one Generation a prompt, in the order of the prompts.

    `model` is a transformers causal model; it writes in eval mode, and its modes come back as they were. `pad_id` may
    be equal to `eos_id`: texts are cut by position, at the first EOS after the prompt. `advance(n)` is called after
    each batch with the number of prompts that it finished.

    Random numbers: prompt i of a call draws from its own stream (seed, i), so its text does not depend on the batch
    size, on the other prompts, or on how often anything was drawn before (up to float rounding of the logits under
    padding), and no global random state is read or changed. transformers' own sampling draws one multinomial for the
    whole batch: there the same seed with batch 4 and batch 6 gave 0 equal texts of 12.

    Raises UserError when the longest prompt and max_new_tokens overrun the model's positions (an IndexError deep inside
    GPT-2 otherwise); FloatingPointError when the model's logits are NaN, for a text drawn from them would look like any
    other; ValueError for an empty prompt or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"prompt {[len(prompt) for prompt in prompts].index(0)} has no token: nothing to continue")
    _refuse_overrun(model, prompts, sampling.max_new_tokens)
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    generations: list[Generation | None] = [None] * len(prompts)
    with _eval_mode(model), _own_generation_config(model, sampling, eos_id=eos_id, pad_id=pad_id):
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            new_BS = _generate_batch(
                model, [prompts[i] for i in rows], sampling, pad_id=pad_id, streams=rows, seed=seed
            )
            for i, new_ids in zip(rows, new_BS.tolist(), strict=True):
                generations[i] = _cut_at_eos(new_ids, eos_id)
            if advance is not None:
                advance(len(rows))
    return [generation for generation in generations if generation is not None]


def decode(generations: Sequence[Generation], tokenizer: Any) -> list[str]:
    """Return the texts: special tokens skipped, spaces kept, both ends stripped (as MiniLLM's evaluation does)."""
    texts = tokenizer.batch_decode(
        [generation.token_ids for generation in generations],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [text.strip() for text in texts]


def _generate_batch(
    model: Any, prompts: list[Sequence[int]], sampling: Sampling, *, pad_id: int, streams: list[int], seed: int
) -> Tensor:
    """Return the new ids [B, S], padded on the right with pad_id after EOS."""
    from transformers import LogitsProcessorList

    width = max(len(prompt) for prompt in prompts)
    # Left padding with a mask: right padding, or left padding without the mask, gave 1 right text of 8.
    ids_BP = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask_BP = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    processors = LogitsProcessorList(_processors(sampling, ids_BP, mask_BP, streams=streams, seed=seed))
    output_BT = model.generate(
        input_ids=ids_BP,
        attention_mask=mask_BP,
        generation_config=model.generation_config,
        logits_processor=processors,
    )
    new_BS: Tensor = output_BT[:, width:]
    return new_BS


def _processors(
    sampling: Sampling, ids_BP: Tensor, mask_BP: Tensor, *, streams: list[int], seed: int
) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Return what is done to the scores at each step, in transformers' order, after its own n-gram ban."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    processors: list[Callable[[Tensor, Tensor], Tensor]] = [_refuse_nan]
    if sampling.repetition_penalty != 1:
        processors.append(PenaltyOnRealTokens(sampling.repetition_penalty, ids_BP, mask_BP))
    if sampling.greedy:
        return processors
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    draws = [np.random.default_rng([seed, stream]).random(sampling.max_new_tokens) for stream in streams]
    uniforms_BS = torch.from_numpy(np.stack(draws))
    processors.append(InverseCdfDraw(uniforms_BS.to(ids_BP.device), prompt_width=ids_BP.shape[1]))
    return processors


def _refuse_nan(ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
    if torch.isnan(scores_BV).any():
        raise FloatingPointError("the model's logits are NaN: its weights are broken or its dtype overflows")
    return scores_BV


class PenaltyOnRealTokens:
    """transformers' repetition penalty, blind to padding.

    The library penalises every id it finds in the batch, padding too. Where pad = eos (GPT-2) that makes a short prompt
    in a padded batch less willing to stop than the same prompt alone.
    """

    def __init__(self, penalty: float, ids_BP: Tensor, mask_BP: Tensor) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        self._penalise = RepetitionPenaltyLogitsProcessor(penalty)
        # The last token of a prompt is real, and the penalty looks at the set of ids only.
        self._prompt_BP = torch.where(mask_BP.bool(), ids_BP, ids_BP[:, -1:])

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        width = self._prompt_BP.shape[1]
        penalised: Tensor = self._penalise(torch.cat([self._prompt_BP, ids_BT[:, width:]], dim=1), scores_BV)
        return penalised


class InverseCdfDraw:
    """One token a row, drawn from softmax(scores) with that row's own uniform number of the step.

    Returns scores that are 0 at the drawn token and -inf elsewhere, so that transformers' argmax picks it. The sum runs
    in float64: in float32 the tail of a vocabulary of 150k tokens is rounded away. On a CPU this costs 0.7 ms for
    32 x 50257 where torch.multinomial costs 33 ms.
    """

    def __init__(self, uniforms_BS: Tensor, *, prompt_width: int) -> None:
        self._uniforms_BS = uniforms_BS
        self._prompt_width = prompt_width

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        step = ids_BT.shape[1] - self._prompt_width
        cdf_BV = torch.softmax(scores_BV.float(), dim=-1).cumsum(dim=-1, dtype=torch.float64)
        # right=True: the first token whose sum is above the number, so a token of probability 0 is never drawn.
        target_B1 = self._uniforms_BS[:, step : step + 1] * cdf_BV[:, -1:]
        drawn_B1 = torch.searchsorted(cdf_BV, target_B1, right=True).clamp(max=scores_BV.shape[-1] - 1)
        return torch.full_like(scores_BV, float("-inf")).scatter(1, drawn_B1, 0.0)


def _cut_at_eos(new_ids: list[int], eos_id: int) -> Generation:
    """Return the ids before the first EOS. By position: what follows it is padding, whichever id that has."""
    if eos_id in new_ids:
        return Generation(token_ids=new_ids[: new_ids.index(eos_id)], finished=True)
    return Generation(token_ids=new_ids, finished=False)


def _refuse_overrun(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if context is None or longest + max_new_tokens <= context:
        return
    room = context - longest
    remedy = f"type eval.max_new_tokens={room} or less, or drop" if room >= 1 else "drop"
    raise UserError(
        f"eval.max_new_tokens={max_new_tokens}: the longest prompt has {longest} tokens and the model has {context} "
        f"positions, so at most {max(room, 0)} new tokens fit; {remedy} the long prompts"
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


@contextmanager
def _own_generation_config(model: Any, sampling: Sampling, *, eos_id: int, pad_id: int) -> Iterator[None]:
    """Give the model a fresh GenerationConfig inside, and its own back afterwards.

    transformers fills every field left unset from model.generation_config (Qwen and Llama checkpoints ship top_p, top_k
    and penalties), then from its defaults (top_k 50). So the whole object is replaced, not only some fields. do_sample
    is off because InverseCdfDraw does the drawing: no sampling value is read from this object at all.
    """
    from transformers import GenerationConfig

    former = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        use_cache=True,
        return_dict_in_generate=False,
    )
    try:
        yield
    finally:
        model.generation_config = former
