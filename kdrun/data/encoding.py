"""Examples as token ids: one flat array, with where each row starts and how much of it is prompt."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrun.data.examples import Example
from kdrun.data.template import render_prompt
from kdrun.errors import UserError

OVERLONG = ("drop", "truncate")
# Python lists of ids cost some 36 bytes a token, the array 4: so never the lists of the whole set at once.
_ROWS_AT_ONCE = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedSet:
    """Rows of token ids: prompt, response, EOS. Every id after the prompt is scored, none of the prompt is.

    Row i is `ids[offsets[i]:offsets[i + 1]]`; its first `prompt_lengths[i]` ids are the prompt. `example_index[i]` is
    its place in the examples that were encoded. The counts are of examples at encoding; `subset` keeps them.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]
    example_index: NDArray[np.int32]
    num_dropped: int = 0  # prompt over max_prompt_tokens
    num_cut_prompts: int = 0  # kept, by the end of its prompt
    num_cut_responses: int = 0  # cut at max_tokens, so without EOS

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def num_scored_tokens(self) -> int:
        """Response tokens and EOS of all rows."""
        return len(self.ids) - int(self.prompt_lengths.sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, prompt included."""
        return np.diff(self.offsets)

    @property
    def scored_lengths(self) -> NDArray[np.int64]:
        """Scored tokens of each row."""
        return self.lengths - self.prompt_lengths

    def row(self, i: int) -> tuple[NDArray[np.int32], int]:
        """Ids of a row and how many of them are prompt."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]], int(self.prompt_lengths[i])

    def prompt(self, i: int) -> NDArray[np.int32]:
        """Ids of a row's prompt: what generation starts from."""
        return self.ids[self.offsets[i] : self.offsets[i] + self.prompt_lengths[i]]

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> "EncodedSet":
        """The rows at these indices, in their order."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = [self.row(i)[0] for i in chosen]
        return replace(
            self,
            ids=np.concatenate(rows) if rows else self.ids[:0],
            offsets=_offsets([len(row) for row in rows]),
            prompt_lengths=self.prompt_lengths[chosen],
            example_index=self.example_index[chosen],
        )

    @classmethod
    def of_rows(
        cls,
        rows: Sequence[NDArray[np.int32]],
        prompt_lengths: Sequence[int] | NDArray[np.integer],
        example_index: Sequence[int] | NDArray[np.integer],
    ) -> "EncodedSet":
        """The set of these rows, each with how much of it is prompt and which example it came from."""
        return cls(
            ids=np.concatenate([np.asarray(row, dtype=np.int32) for row in rows] or [np.empty(0, dtype=np.int32)]),
            offsets=_offsets([len(row) for row in rows]),
            prompt_lengths=np.array(prompt_lengths, dtype=np.int32),
            example_index=np.array(example_index, dtype=np.int32),
        )

    def fingerprint(self) -> str:
        """sha256 over the four arrays: equal when every row, its order and its origin are; the same on any machine."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.prompt_lengths, self.example_index):
            values = np.ascontiguousarray(array, dtype="<i8")
            digest.update(f"{len(values)}:".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    template: str,
    max_prompt_tokens: int,
    max_tokens: int,
    overlong: str = "drop",
) -> EncodedSet:
    """Rows of prompt + response + EOS, at most `max_tokens` long, in the order of the examples.

    A prompt over `max_prompt_tokens` is dropped with its example, or (`truncate`) keeps its last `max_prompt_tokens`
    ids, so that "### Response:" stays; both are counted. A response cut at `max_tokens` has no EOS.

    No special token is added but EOS: no BOS, for any tokenizer, as in MiniLLM's training data. What looks like one in
    the text of an example ("<|endoftext|>") is encoded as plain text, but for the prompt of `chat`, whose template
    writes them.

    Prompt and response are encoded apart and joined, as in DSKD and as generation does. MiniLLM encodes both as one
    text and cuts at the length of the prompt alone, which merges over the boundary or shifts it where the two disagree.

    Raises UserError for settings that leave no room, a tokenizer without EOS, or when no row is left.
    """
    _check_limits(max_prompt_tokens, max_tokens, overlong)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no end-of-sequence token, so a model could not learn to stop; "
            "choose another pair"
        )
    rows: list[NDArray[np.int32]] = []
    prompt_lengths: list[int] = []
    example_index: list[int] = []
    num_cut_prompts = num_cut_responses = 0
    for index, (whole_prompt, response) in enumerate(_encoded_pairs(examples, tokenizer, template)):
        is_overlong = len(whole_prompt) > max_prompt_tokens
        if is_overlong and overlong == "drop":
            continue
        num_cut_prompts += is_overlong
        prompt = whole_prompt[-max_prompt_tokens:]
        full = np.concatenate([prompt, response, np.array([tokenizer.eos_token_id], dtype=np.int32)])
        num_cut_responses += len(full) > max_tokens
        rows.append(full[:max_tokens])
        prompt_lengths.append(len(prompt))
        example_index.append(index)
    if not rows:
        raise UserError(_nothing_left(len(examples), max_prompt_tokens))
    num_dropped = len(examples) - len(rows)
    if num_dropped:
        logger.info("dropped %d of %d examples: prompt over %d tokens", num_dropped, len(examples), max_prompt_tokens)
    return replace(
        EncodedSet.of_rows(rows, prompt_lengths, example_index),
        num_dropped=num_dropped,
        num_cut_prompts=num_cut_prompts,
        num_cut_responses=num_cut_responses,
    )


def check_some_prompt_fits(
    prompts: Iterable[str], count_tokens: Callable[[str], int], *, max_prompt_tokens: int
) -> None:
    """Look for a prompt that is not overlong, and no further; for `overlong="drop"`.

    Raises UserError as `encode`, when there is none.
    """
    number = 0
    for number, prompt in enumerate(prompts, start=1):  # noqa: B007 - the count, after the loop
        if count_tokens(prompt) <= max_prompt_tokens:
            return
    raise UserError(_nothing_left(number, max_prompt_tokens))


def _encoded_pairs(
    examples: Sequence[Example], tokenizer: Any, template: str
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Prompt ids and response ids of each example, in order."""
    for start in range(0, len(examples), _ROWS_AT_ONCE):
        some = examples[start : start + _ROWS_AT_ONCE]
        prompts = [render_prompt(example, template, tokenizer=tokenizer) for example in some]
        yield from zip(
            tokenize(prompts, tokenizer, parse_special=template == "chat"),
            tokenize([example.response for example in some], tokenizer, parse_special=False),
            strict=True,
        )


def tokenize(texts: list[str], tokenizer: Any, *, parse_special: bool) -> list[NDArray[np.int32]]:
    """The ids of each text, none added; what looks like a special token is one, or (not `parse_special`) plain text."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=not parse_special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about texts over the model's length: the limits are ours
    )
    return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _check_limits(max_prompt_tokens: int, max_tokens: int, overlong: str) -> None:
    if max_prompt_tokens < 1:
        raise UserError(
            f"data.max_prompt_tokens={max_prompt_tokens}: must be at least 1; type data.max_prompt_tokens=256"
        )
    if max_tokens <= max_prompt_tokens:
        raise UserError(
            f"data.max_tokens={max_tokens}: must be above data.max_prompt_tokens={max_prompt_tokens}, "
            f"or no response fits; type data.max_tokens={2 * max_prompt_tokens}"
        )
    if overlong not in OVERLONG:
        raise UserError(f"data.overlong={overlong}: must be one of {', '.join(OVERLONG)}; type data.overlong=drop")


def _nothing_left(num_examples: int, max_prompt_tokens: int) -> str:
    if not num_examples:
        return "the data set has no examples to encode; choose another with data=NAME"
    return (
        f"data.max_prompt_tokens={max_prompt_tokens}: every prompt of {num_examples} examples is longer; "
        "type a larger number, or data.overlong=truncate"
    )
