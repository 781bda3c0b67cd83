"""Dolly and UltraChat, read by `datasets` from local folders of the hub's shape; the hub itself is never asked."""

import json
import logging
import os
import subprocess
import sys

import pytest

from kdrun.data import Example, load_splits
from kdrun.data.hub import first_exchange, load_dolly, load_ultrachat
from kdrun.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def dolly_rows(count, word="Question"):
    return [{"instruction": f"{word} {i}", "input": "", "output": f"Answer {i}", "topic": "x"} for i in range(count)]


def dialogue(*turns):
    return {"prompt": "x", "messages": [{"role": role, "content": content} for role, content in turns]}


def test_minillms_own_layout_gives_the_first_thousand_rows_to_validation(tmp_path):
    write_rows(tmp_path / "d" / "raw.jsonl", dolly_rows(2500))
    write_rows(tmp_path / "d" / "valid.jsonl", dolly_rows(5, "Test"))
    splits = load_dolly(str(tmp_path / "d"))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (1500, 1000, 5)
    assert splits.valid[0] == Example("Question 0", "", ("Answer 0",))
    assert splits.train[0].instruction == "Question 1000"
    assert splits.test[4].instruction == "Test 4"


def test_splits_are_taken_by_name_and_a_missing_one_is_carved_and_said(tmp_path, caplog):
    write_rows(tmp_path / "d" / "train.jsonl", dolly_rows(300))
    write_rows(tmp_path / "d" / "valid.jsonl", dolly_rows(7, "Held out"))
    with caplog.at_level(logging.INFO, logger="kdrun.data"):
        splits = load_splits("dolly", path=str(tmp_path / "d"))
    assert len(splits.valid) == 7
    assert len(splits.train) + len(splits.test) == 300
    assert splits.test
    assert "has no test split: carved from train by a hash" in caplog.text


def test_three_named_splits_are_taken_whole(tmp_path):
    for name, count in (("train", 20), ("validation", 3), ("test", 2)):
        write_rows(tmp_path / "d" / f"{name}.jsonl", dolly_rows(count, name))
    splits = load_dolly(str(tmp_path / "d"))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (20, 3, 2)


def test_the_real_dolly_rows_come_through_datasets_unchanged(dolly_path):
    from kdrun.data.jsonl import read_jsonl

    splits = load_dolly(str(dolly_path.parent))
    assert set(splits.train) | set(splits.test) == set(read_jsonl(dolly_path))
    assert len(splits.valid) == 250


def test_ultrachat_is_the_first_exchange_of_each_dialogue(tmp_path, caplog):
    talk = [("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2")]
    rows = [
        dialogue(*talk),
        dialogue(("system", "Be brief."), *talk),
        dialogue(("user", "Q")),
        dialogue(("assistant", "A"), ("user", "Q")),
        dialogue(("user", " "), ("assistant", "A")),
    ]
    many = [dialogue(("user", f"Q{i}"), ("assistant", f"A{i}")) for i in range(300)]
    write_rows(tmp_path / "d" / "data" / "train_sft-00000-of-00001.jsonl", many)
    write_rows(tmp_path / "d" / "data" / "test_sft-00000-of-00001.jsonl", rows)
    write_rows(tmp_path / "d" / "data" / "train_gen-00000-of-00001.jsonl", many)
    with caplog.at_level(logging.INFO, logger="kdrun.data"):
        splits = load_splits("ultrachat", path=str(tmp_path / "d"))
    assert splits.test == [Example("Q", "", ("A",))] * 2
    assert len(splits.train) + len(splits.valid) == 300
    assert splits.valid
    assert "left out 3 dialogues" in caplog.text
    assert "has no validation split: carved" in caplog.text


def test_ultrachat_takes_plainly_named_splits_too(tmp_path):
    for name, count in (("train", 9), ("validation", 2), ("test", 1)):
        write_rows(tmp_path / "d" / f"{name}.jsonl", [dialogue(("user", "Q"), ("assistant", "A"))] * count)
    splits = load_ultrachat(str(tmp_path / "d"))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (9, 2, 1)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], None),
        ([{"role": "user", "content": "Q"}], None),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "A"}], None),
        ([{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}], None),
        ([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], Example("Q", "", ("A",))),
    ],
)
def test_a_dialogue_without_a_first_exchange_gives_none(turns, expected):
    assert first_exchange(turns) == expected


def refused(load, path, **keys):
    with pytest.raises(UserError) as caught:
        load(str(path), **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_path_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    write_rows(tmp_path / "file.jsonl", dolly_rows(3))
    assert "no such folder; type data.path=FOLDER" in refused(load_dolly, tmp_path / "nowhere")
    assert "cannot be read as a data set" in refused(load_dolly, tmp_path / "empty")
    assert "type data=jsonl data.path=" in refused(load_dolly, tmp_path / "file.jsonl")
    assert "no such folder; type data.path=FOLDER" in refused(load_dolly, "no such name!")


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    assert "data.revision=abc: means nothing for the local folder" in refused(load_dolly, tmp_path, revision="abc")


def test_a_folder_of_another_shape_is_refused_in_one_line(tmp_path):
    write_rows(tmp_path / "a" / "train.jsonl", [{"prompt": "Q", "completion": "A"}])
    assert 'train row 0: field "instruction" is missing' in refused(load_dolly, tmp_path / "a")
    assert 'train row 0: field "messages" must be a list' in refused(load_ultrachat, tmp_path / "a")
    write_rows(tmp_path / "b" / "test.jsonl", dolly_rows(3))
    assert "has no train split with examples (splits found: test)" in refused(load_dolly, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.jsonl").write_text('{"instruction": "a", "output": \n')
    assert "cannot be read as a data set" in refused(load_dolly, tmp_path / "c")


def test_code_in_a_folder_is_never_run(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
    assert "cannot be read as a data set" in refused(load_dolly, tmp_path / "d")
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_message_says_what_to_type(tmp_path):
    program = (
        "from kdrun.data import load_splits\nfrom kdrun.errors import UserError\n"
        "try:\n    load_splits('dolly', revision='v1')\nexcept UserError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("data.path=MiniLLM/dolly data.revision=v1: the hub cannot be reached")
    assert done.stdout.rstrip().endswith("type data.path=FOLDER with a copy, or data=unicode, which needs no download")
    assert done.stdout.count("\n") == 1
