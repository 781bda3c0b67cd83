"""A set is encoded once; anything that would give other rows gives another file."""

import logging
from pathlib import Path

import numpy as np
import pytest

from kdrun.data import stored
from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Example
from kdrun.data.stored import encode_once
from kdrun.models.scratch import train_tokenizer

EXAMPLES = [Example(f"Say {n}", "", (f"number {n}", "another")) for n in range(20)]
SETTINGS = {"template": "plain", "max_prompt_tokens": 20, "max_tokens": 30, "overlong": "drop"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Say number another 0 1 2 3"] * 5, vocab_size=300)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []

    def counted(*args, **kwargs) -> EncodedSet:
        seen.append(1)
        return encode(*args, **kwargs)

    monkeypatch.setattr(stored, "encode", counted)
    return seen


def assert_same(left: EncodedSet, right: EncodedSet) -> None:
    assert left.fingerprint() == right.fingerprint()
    assert (left.num_dropped, left.num_cut_prompts, left.num_cut_responses) == (
        right.num_dropped, right.num_cut_prompts, right.num_cut_responses,
    )  # fmt: skip
    assert all(getattr(left, name).dtype == getattr(right, name).dtype for name in stored.ARRAYS)


def test_the_second_time_it_is_read(tmp_path: Path, tokenizer, calls) -> None:
    settings = SETTINGS | {"max_tokens": 26}  # some responses are cut
    made = encode_once(EXAMPLES, tokenizer, folder=tmp_path / "a", **settings)
    read = encode_once(EXAMPLES, tokenizer, folder=tmp_path / "a", **settings)
    assert len(calls) == 1
    assert_same(read, made)
    assert_same(made, encode(EXAMPLES, tokenizer, **settings))


def test_whatever_changes_the_rows_gives_a_file_of_its_own(tmp_path: Path, tokenizer, calls) -> None:
    other = train_tokenizer(["Say it otherwise"] * 5, vocab_size=280)
    cases = [
        (EXAMPLES, tokenizer, SETTINGS),
        (EXAMPLES[1:], tokenizer, SETTINGS),
        ([*EXAMPLES[1:], EXAMPLES[0]], tokenizer, SETTINGS),
        ([Example("Say 0", "in words", ("number 0",)), *EXAMPLES[1:]], tokenizer, SETTINGS),
        (EXAMPLES, other, SETTINGS),
        (EXAMPLES, tokenizer, SETTINGS | {"max_tokens": 29}),
        (EXAMPLES, tokenizer, SETTINGS | {"template": "alpaca", "overlong": "truncate"}),
    ]
    for number, (examples, used, settings) in enumerate(cases, start=1):
        encode_once(examples, used, folder=tmp_path, **settings)
        assert len(calls) == number == len(list(tmp_path.iterdir()))


def test_a_damaged_file_is_named_and_made_again(tmp_path: Path, tokenizer, calls, caplog) -> None:
    made = encode_once(EXAMPLES, tokenizer, folder=tmp_path, **SETTINGS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    for number, damaged in enumerate((bytes(flipped), whole[:-10], b""), start=2):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert_same(encode_once(EXAMPLES, tokenizer, folder=tmp_path, **SETTINGS), made)
        assert path.name in caplog.text and len(calls) == number
        assert_same(encode_once(EXAMPLES, tokenizer, folder=tmp_path, **SETTINGS), made)
        assert len(calls) == number


def test_without_a_folder_nothing_is_written(tmp_path: Path, tokenizer, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoded = encode_once(EXAMPLES, tokenizer, folder=None, **SETTINGS)
    assert not list(tmp_path.iterdir()) and np.array_equal(encoded.ids, encode(EXAMPLES, tokenizer, **SETTINGS).ids)
