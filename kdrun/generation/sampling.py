"""From the scores of the next token to the token: what transformers' processors do, with random numbers of one's own.

Shapes: B rows, V vocabulary, T tokens of the longest row so far, K blocks of the vocabulary, W tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kdrun.errors import UserError

BLOCK = 256  # tokens; near the root of usual vocabularies, so that both searches of the draw are short
NOT_A_NUMBER = -1  # in the place of a token


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


def resolved_settings(sampling: Sampling) -> dict[str, Any]:
    """Return all that decides the texts beside model, prompts and seed, for the run record."""
    sampler = "argmax" if sampling.greedy else "inverse CDF, one numpy stream for each (seed, index of the prompt)"
    return {**asdict(sampling), "do_sample": not sampling.greedy, "num_beams": 1, "sampler": sampler}


class RepeatedNgrams:
    """Which tokens would complete an n-gram that the text holds already; size 0: none ever.

    The same set as transformers' NoRepeatNGramLogitsProcessor finds by listing every n-gram of every row at every step.
    """

    def __init__(self, size: int, ids: Sequence[int]) -> None:
        self._size, self._followers = size, dict[tuple[int, ...], list[int]]()
        for end in range(size, len(ids) + 1 if size else 0):
            self.add(ids[end - size : end])

    def add(self, ids: Sequence[int]) -> None:
        """Note the n-gram that ends the text: to be called after every token."""
        if 0 < self._size <= len(ids):
            self._followers.setdefault(tuple(ids[-self._size : -1]), []).append(ids[-1])

    def banned(self, ids: Sequence[int]) -> list[int]:
        """Tokens that may not follow the text."""
        return self._followers.get(tuple(ids[1 - self._size :]), []) if self._size else []


def score_changes(sampling: Sampling) -> Callable[[Tensor, Sequence[Sequence[int]], Sequence[Sequence[int]]], Tensor]:
    """A function (scores_BV, texts, banned tokens of each row) -> scores_BV, by transformers' processors in its order:
    repetition penalty, n-gram ban, temperature, top-k, top-p. The texts hold no padding, which its penalty would count.
    """
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    warpers: list[Callable[..., Tensor]] = []
    if not sampling.greedy:
        warpers += [TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1 else []
        warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k > 0 else []
        warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []

    def change(scores_BV: Tensor, texts: Sequence[Sequence[int]], banned: Sequence[Sequence[int]]) -> Tensor:
        if sampling.repetition_penalty != 1:
            width = max(map(len, texts))  # a text's own first token in place of padding: only the set of ids counts
            ids_BT = torch.tensor([[ids[0]] * (width - len(ids)) + list(ids) for ids in texts], device=scores_BV.device)
            scores_BV = penalty(ids_BT, scores_BV)
        pairs = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
        if pairs:
            row_N, token_N = torch.tensor(pairs, device=scores_BV.device).T
            scores_BV = scores_BV.index_put((row_N, token_N), scores_BV.new_tensor(float("-inf")))
        for warper in warpers:
            scores_BV = warper(None, scores_BV)
        return scores_BV

    return change


def argmax(scores_BV: Tensor) -> Tensor:
    """The likeliest token of each row [B]; NOT_A_NUMBER where a score is NaN."""
    return scores_BV.argmax(-1).where(~scores_BV.amax(-1).isnan(), NOT_A_NUMBER)  # amax hands NaN on


def inverse_cdf(scores_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """One token a row [B], drawn from softmax(scores) with that row's own number in [0, 1); NOT_A_NUMBER after NaN.

    A token of probability 0 is never drawn. The running sum is float64, or the tail of a vocabulary of 150k would be
    rounded away; it runs over blocks of tokens, and then within the block that was met. For 32 x 50257 on one core
    this takes 1.5 ms, one running sum over all tokens 20 and torch.multinomial 39.
    """
    num_rows, num_tokens = scores_BV.shape
    whole = num_tokens - num_tokens % BLOCK
    p_BV = torch.softmax(scores_BV.float(), dim=-1)
    blocks = p_BV[:, :whole].view(num_rows, whole // BLOCK, BLOCK).sum(-1), p_BV[:, whole:].sum(-1, keepdim=True)
    cdf_BK = torch.cat(blocks, dim=-1).cumsum(-1, dtype=torch.float64)
    block_B1, rest_B1 = _search(cdf_BK, uniform_B1 * cdf_BK[:, -1:])
    index_BW = block_B1 * BLOCK + torch.arange(BLOCK, device=scores_BV.device)
    within_BW = p_BV.gather(1, index_BW.clamp(max=num_tokens - 1)).where(index_BW < num_tokens, 0)
    token_B1 = block_B1 * BLOCK + _search(within_BW.cumsum(-1, dtype=torch.float64), rest_B1)[0]
    return token_B1.where(~cdf_BK[:, -1:].isnan(), NOT_A_NUMBER)[:, 0]


def _search(cdf_BK: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """(index of the first sum above the target, the target less the sum before it), both [B, 1]."""
    # A target that rounding has put at the very end would be past the last possible token.
    target_B1 = target_B1.minimum(cdf_BK[:, -1:] * (1 - 2**-52))
    index_B1 = torch.searchsorted(cdf_BK, target_B1, right=True).clamp(max=cdf_BK.shape[1] - 1)
    before_B1 = cdf_BK.gather(1, (index_B1 - 1).clamp(min=0)).where(index_B1 > 0, 0)
    return index_B1, target_B1 - before_B1
