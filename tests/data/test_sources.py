"""Sets by name."""

import json
import logging

import pytest

from kdrun.data import SOURCES, load_splits, split_by_hash
from kdrun.data.jsonl import read_jsonl
from kdrun.data.unicode_names import unicode_names
from kdrun.errors import UserError


def rows(count, word="Question"):
    return [json.dumps({"instruction": f"{word} {i}", "output": f"Answer {i}"}) for i in range(count)]


def test_unicode_is_divided_by_hash():
    splits = load_splits("unicode")
    assert splits == split_by_hash(unicode_names())
    total = len(splits.train) + len(splits.valid) + len(splits.test)
    assert abs(len(splits.valid) / total - 0.05) < 0.01


def test_jsonl_alone_carves_validation_and_test_and_says_so(write_lines, caplog):
    path = write_lines(rows(400))
    with caplog.at_level(logging.INFO, logger="kdrun.data"):
        splits = load_splits("jsonl", path=str(path))
    assert splits == split_by_hash(read_jsonl(path))
    assert "validation and test carved from it by a hash of the prompt" in caplog.text


def test_jsonl_files_that_are_given_are_taken_whole(write_lines):
    train, valid, test = (
        write_lines(rows(count, word), f"{word}.jsonl") for count, word in ((30, "A"), (3, "B"), (2, "C"))
    )
    splits = load_splits("jsonl", path=str(train), valid_path=str(valid), test_path=str(test))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (30, 3, 2)


def test_jsonl_with_a_validation_file_carves_only_test(write_lines):
    train, valid = write_lines(rows(400)), write_lines(rows(3, "V"), "valid.jsonl")
    splits = load_splits("jsonl", path=str(train), valid_path=str(valid))
    assert len(splits.valid) == 3
    assert len(splits.train) + len(splits.test) == 400
    assert splits.test


def test_prompts_that_stand_in_train_and_in_a_held_out_file_are_counted(write_lines, caplog):
    train, valid = write_lines(rows(40)), write_lines(rows(2) + rows(3, "V"), "valid.jsonl")
    load_splits("jsonl", path=str(train), valid_path=str(valid), test_path=str(valid))
    assert "2 of 5 validation prompts stand in train too" in caplog.text
    assert "2 of 5 test prompts stand in train too" in caplog.text


def test_too_few_rows_to_carve_from_are_refused(write_lines):
    path = write_lines(rows(1))
    with pytest.raises(UserError, match=r"too few to carve a validation split by hash; type data\.valid_path=FILE"):
        load_splits("jsonl", path=str(path))


def test_an_empty_test_split_is_said_and_allowed(write_lines, caplog):
    train, valid = write_lines(rows(1)), write_lines(rows(1, "V"), "valid.jsonl")
    assert load_splits("jsonl", path=str(train), valid_path=str(valid)).test == []
    assert "test split carved by hash is empty" in caplog.text


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("pile", {}, r"^data=pile: must be one of unicode, docstrings, jsonl, dolly, ultrachat"),
        ("pile", {"path": "x"}, r"^data=pile: must be one of"),
        ("jsonl", {}, r"^data=jsonl: needs a file to train on; type data\.path=FILE"),
        ("jsonl", {"path": "x", "revision": "main"}, r"^data\.revision=main: means nothing for data=jsonl"),
        ("unicode", {"path": "x"}, r"^data\.path=x: means nothing for data=unicode, which takes no key of its own"),
        ("docstrings", {"test_path": "x"}, r"^data\.test_path=x: means nothing for data=docstrings"),
        ("dolly", {"valid_path": "x"}, r"^data\.valid_path=x: .* takes data\.path, data\.revision; leave it out"),
        ("jsonl", {"path": "nowhere"}, r"^data\.path=nowhere: no such file"),
    ],
)
def test_names_and_keys_that_do_not_fit_are_refused(name, keys, message):
    with pytest.raises(UserError, match=message):
        load_splits(name, **keys)


def test_bad_held_out_files_are_named_by_their_own_key(write_lines):
    train = write_lines(rows(40))
    for key in ("valid_path", "test_path"):
        with pytest.raises(UserError, match=rf"^data\.{key}=nowhere: no such file"):
            load_splits("jsonl", path=str(train), **{key: "nowhere"})


def test_the_names_are_those_of_the_config_group():
    assert SOURCES == ("unicode", "docstrings", "jsonl", "dolly", "ultrachat")
