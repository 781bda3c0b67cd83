"""Generated texts as rows to learn from: what stood after a prompt is replaced by what a model wrote there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from kdrun.data.encoding import EncodedSet
from kdrun.generation.generate import Generation


def answered(encoded: EncodedSet, rows: Sequence[int], generations: Sequence[Generation], *, eos_id: int) -> EncodedSet:
    """The prompts of these rows, each followed by its generation: a row may come several times, with several texts.

    EOS is there where the model emitted it, and is learned; where a text was cut there is none. Raises ValueError for
    another number of generations than rows.
    """
    texts = [
        [*encoded.prompt(row).tolist(), *generation.token_ids, *[eos_id] * generation.finished]
        for row, generation in zip(rows, generations, strict=True)
    ]
    return replace(
        encoded.subset(rows),
        ids=np.array(list(chain.from_iterable(texts)), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, texts)], dtype=np.int64),
    )


def answer_limits(encoded: EncodedSet, rows: Sequence[int], *, max_new_tokens: int, max_tokens: int) -> list[int]:
    """How many new tokens each row may get, EOS counted, so that its prompt and its text are at most `max_tokens`.

    Below 1 where the prompt leaves no room; `generate` refuses that.
    """
    return [min(max_new_tokens, max_tokens - int(encoded.prompt_lengths[row])) for row in rows]
