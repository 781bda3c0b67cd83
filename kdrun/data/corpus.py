"""Plain text to learn beside the data: documents end to end, cut into rows of one length."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.encoding import EncodedSet, tokenize
from kdrun.data.jsonl import iterate_lines, iterate_objects, text_of
from kdrun.errors import UserError

KEY = "data.corpus"
SHAPE = '{"text": "..."}'
CHARACTERS_AT_ONCE = 2**20  # see `encode`: never the lists of all ids at once


def load_corpus(path: str, tokenizer: Any, *, max_tokens: int) -> EncodedSet:
    """Rows of `max_tokens` ids: the documents of a file end to end, EOS after each.

    The first id of a row is unscored (its prompt), as no id of its row stands before it. The last row is shorter where
    the ids do not come out even, and left out with a single id. A special token that a document spells is plain text.

    Raises:
        UserError: see `iterate_documents`.
    """
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    pieces = [piece for some in _batches(path) for ids in tokenize(some, tokenizer, parse_special=False)
              for piece in (ids, end)]  # fmt: skip
    ids = np.concatenate(pieces)
    ids = ids[: len(ids) - (len(ids) % max_tokens == 1)]
    starts = np.arange(0, len(ids), max_tokens)
    return EncodedSet(
        ids=ids,
        offsets=np.append(starts, len(ids)).astype(np.int64),
        prompt_lengths=np.ones(len(starts), dtype=np.int32),
        example_index=np.arange(len(starts), dtype=np.int32),
    )


def check_corpus(path: str) -> None:
    """Reads a corpus to its end and keeps nothing.

    Raises:
        UserError: see `iterate_documents`.
    """
    for _ in iterate_documents(path):
        pass


def iterate_documents(path: str) -> Iterator[str]:
    """The documents: "text" of each object of a .jsonl, or what stands between blank lines of a .txt; none is blank.

    Raises:
        UserError: naming data.corpus, or file and line: no such file, another kind, not UTF-8, a bad line, no text.
    """
    empty = True
    for document in _of_objects(path) if _kind(path) == ".jsonl" else _of_lines(path):
        if document.strip():
            empty = False
            yield document
    if empty:
        raise UserError(f"{KEY}={path}: holds no text; give documents, or leave {KEY} out")


def _kind(path: str) -> str:
    suffix = Path(path).suffix
    if suffix not in (".jsonl", ".txt"):
        raise UserError(
            f"{KEY}={path}: must end in .txt (documents between blank lines) or .jsonl ({SHAPE} in each line)"
        )
    return suffix


def _of_objects(path: str) -> Iterator[str]:
    for row, where in iterate_objects(path, key=KEY, shape=SHAPE):
        if "text" not in row:
            raise UserError(f'{where}: field "text" is missing; each line is {SHAPE}')
        yield text_of(row["text"], "text", where)


def _of_lines(path: str) -> Iterator[str]:
    lines = (line for line, _ in iterate_lines(path, key=KEY))
    return ("\n".join(group) for blank, group in groupby(lines, lambda line: not line.strip()) if not blank)


def _batches(path: str) -> Iterator[list[str]]:
    """The documents, so many at a time that they have some CHARACTERS_AT_ONCE."""
    some: list[str] = []
    size = 0
    for document in iterate_documents(path):
        some.append(document)
        size += len(document)
        if size >= CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
