"""The store of the teacher's text, and the server that may write it: files, order, ends, damage, going on."""

import json
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.generation.endpoint import Endpoint
from kdrun.generation.generate import Generation, Sampling, generate
from kdrun.models.scratch import train_tokenizer
from kdrun.rollouts import teacher_text
from kdrun.rollouts.server import KEYS, server_writer
from kdrun.rollouts.teacher_text import read_texts, write_texts
from kdrun.runs.progress import progress
from kdrun.teachers.manifest import seal
from tests.evaluation.judge.loopback import Body, Loopback, Reply, prompt_of, serving
from tests.rollouts.conftest import texts_of
from tests.rollouts.test_writer import drawn_by_hand
from tests.training.conftest import END, VOCABULARY

IDENTITY = {"kind": "texts", "vocabulary": VOCABULARY}
LIMIT = 6
SECRET = "sk-very/secret+key-123"


class Killed(BaseException):
    """What ends a writer."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["a few words of some text"], vocab_size=270)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_text, "BLOCK", 10)


class Teacher:
    """A writer that counts its calls, and dies before call number `dies_at`."""

    def __init__(self, model: Any, rows: EncodedSet, dies_at: int | None = None) -> None:
        self.model, self.rows, self.dies_at, self.calls = model, rows, dies_at, 0

    def __call__(self, block: Sequence[int], sample: int, advance: Any) -> list[Generation]:
        if self.calls == self.dies_at:
            raise Killed
        self.calls += 1
        return generate(
            self.model, [self.rows.prompt(row).tolist() for row in block], Sampling(LIMIT), eos_id=END, pad_id=END,
            batch_size=4, seed=[7, sample], indices=block, advance=advance,
        )  # fmt: skip


def put(folder: Path, rows: EncodedSet, write: Any, tokenizer: Any, *, samples: int = 2) -> None:
    notes = {"teacher": "tiny", "data": "numbers"}
    write_texts(folder, rows, write, samples=samples, identity=IDENTITY, notes=notes, tokenizer=tokenizer,
                progress=progress)  # fmt: skip


def got(folder: Path, rows: EncodedSet, *, samples: int = 2, **identity: Any) -> EncodedSet:
    return read_texts(folder, rows, samples=samples, identity=IDENTITY | identity, eos_id=END,
                      limits=[LIMIT] * len(rows))  # fmt: skip


def test_all_samples_of_a_prompt_stand_together_each_drawn_from_the_stream_of_seed_sample_and_row(
    teacher: Any, rows: EncodedSet, tokenizer: Any, tmp_path: Path
) -> None:
    put(tmp_path / "texts", rows, Teacher(teacher, rows), tokenizer, samples=3)
    found = got(tmp_path / "texts", rows, samples=3)
    expected = [
        drawn_by_hand(teacher, rows.prompt(row).tolist(), stream=[7, sample, row], limit=LIMIT)
        for row in range(len(rows)) for sample in range(3)
    ]  # fmt: skip
    assert texts_of(found) == expected
    assert found.example_index.tolist() == np.repeat(rows.example_index, 3).tolist()
    assert found.num_cut_responses == sum(text[-1] != END for text in expected)
    assert len({tuple(text) for text in expected[:3]}) == 3, "samples differ"


def test_a_killed_writer_goes_on_after_its_last_whole_file_and_the_texts_are_those_without_the_kill(
    teacher: Any, rows: EncodedSet, tokenizer: Any, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    put(whole, rows, Teacher(teacher, rows), tokenizer)
    with pytest.raises(Killed):
        put(tmp_path / "cut", rows, Teacher(teacher, rows, dies_at=3), tokenizer)
    assert not (tmp_path / "cut").exists()
    assert [path.name for path in (tmp_path / "cut.partial").glob("texts-*")] == ["texts-00000.jsonl"]
    rest = Teacher(teacher, rows)
    put(tmp_path / "cut", rows, rest, tokenizer)
    assert rest.calls == 4, "two samples of the second and of the third block"
    for path in whole.glob("texts-*"):
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    assert got(tmp_path / "cut", rows).fingerprint() == got(whole, rows).fingerprint()
    told = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    assert told["made"]["resumed_after_texts"] == 20 and told["tokens"] == got(whole, rows).num_scored_tokens


def test_eos_is_learned_where_the_teacher_emitted_it_and_absent_where_the_text_was_cut(
    rows: EncodedSet, tokenizer: Any, tmp_path: Path
) -> None:
    one = rows.subset([3])
    texts = [Generation([5, 6], True), Generation([7] * LIMIT, False), Generation([], True)]
    put(tmp_path / "texts", one, lambda block, sample, advance: [texts[sample]], tokenizer, samples=3)
    found, prompt = got(tmp_path / "texts", one, samples=3), rows.prompt(3).tolist()
    assert texts_of(found) == [[*prompt, 5, 6, END], [*prompt, *[7] * LIMIT], [*prompt, END]]
    assert (found.num_scored_tokens, found.num_cut_responses) == (3 + 6 + 1, 1)


def test_whatever_byte_is_flipped_the_texts_are_refused(
    teacher: Any, rows: EncodedSet, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    put(folder, rows, Teacher(teacher, rows), tokenizer)
    random = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in random.integers(0, len(content), 6):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(UserError, match=str(folder)):
                got(folder, rows)
        path.write_bytes(content)
    assert len(got(folder, rows)) == 48


def test_texts_of_others_prompts_or_links_are_refused(
    teacher: Any, rows: EncodedSet, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    put(folder, rows, Teacher(teacher, rows), tokenizer)
    with pytest.raises(UserError, match="prompts and settings"):
        got(folder, rows, seed=8)
    with pytest.raises(UserError, match="prompts and settings"):
        got(folder, rows.subset(range(9)))
    shutil.move(folder / "texts-00001.jsonl", tmp_path)
    with pytest.raises(UserError, match=r"texts-00001\.jsonl: is missing"):
        got(folder, rows)
    (folder / "texts-00001.jsonl").symlink_to(tmp_path / "texts-00001.jsonl")
    with pytest.raises(UserError, match="is a link out of that folder"):
        got(folder, rows)


@pytest.mark.parametrize(
    "line",
    [
        {"ids": [VOCABULARY]}, {"ids": [-1]}, {"ids": [1.0]}, {"ids": [True]}, {"ids": None}, {"ids": [1] * LIMIT},
        {"row": 1}, {"sample": 1}, {},
    ],
    ids=str,
)  # fmt: skip
def test_a_sealed_folder_of_someone_else_that_holds_no_such_texts_is_refused(
    rows: EncodedSet, tokenizer: Any, tmp_path: Path, line: dict[str, Any]
) -> None:
    folder, one = tmp_path / "texts", rows.subset([0])
    put(folder, one, lambda block, sample, advance: [Generation([1], True)], tokenizer, samples=1)
    good = json.loads((folder / "texts-00000.jsonl").read_text())
    content = json.dumps(good | line if line else [good]).encode()
    (folder / "texts-00000.jsonl").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["texts-00000.jsonl"] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(UserError, match="is no file of texts"):
        got(folder, one, samples=1)


# -- a server ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(rows: EncodedSet, tokenizer: Any) -> EncodedSet:
    """Prompts of the server's tokenizer."""
    prompts = [tokenizer(text)["input_ids"] for text in ("a few words", "some text", "text of words of text")]
    return EncodedSet.of_rows([np.array(ids, dtype=np.int32) for ids in prompts], [len(p) for p in prompts], range(3))


def completes(text: str, reason: str | None = "stop") -> Reply:
    return Reply(json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": reason}]}))


def ask(server: Loopback, rows: EncodedSet, tokenizer: Any, *, limit: int = 20, said: list[str] | None = None,
        **settings: Any) -> list[Generation]:  # fmt: skip
    endpoint = Endpoint(
        base_url=server.base_url, path="completions", model="big", key=SECRET, keys=KEYS, timeout_s=10, retries=1,
        concurrency=3, backoff_s=0.001,
    )  # fmt: skip
    say = (said if said is not None else []).append
    write = server_writer(
        endpoint, rows, tokenizer, Sampling(20, **settings), seed=7, limits=[limit] * len(rows), say=say
    )
    return write(range(len(rows)), 1, lambda texts, tokens: None)


def echoing(tokenizer: Any, answer: Any) -> Any:
    """A server of this tokenizer: given ids and echo, it repeats their text; else `answer` of the prompt's text."""

    def script(body: Body, _: int) -> Reply:
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        return completes(text + "!") if body.get("echo") else answer(text)

    return script


def test_a_server_gets_ids_one_seed_a_text_and_all_settings_and_its_text_is_encoded(
    asked: EncodedSet, tokenizer: Any
) -> None:
    said = list[str]()
    with serving(echoing(tokenizer, lambda prompt: completes(f" {prompt}<|endoftext|>", "stop"))) as server:
        texts = ask(server, asked, tokenizer, limit=40, said=said, temperature=0.5, top_p=0.9)
    assert not said
    assert [tokenizer.decode(text.token_ids) for text in texts] == [
        " a few words<|endoftext|>", " some text<|endoftext|>", " text of words of text<|endoftext|>",
    ]  # fmt: skip
    assert all(text.finished and tokenizer.eos_token_id not in text.token_ids for text in texts)
    bodies = {prompt_of(body): body for body in server.bodies if "echo" not in body}
    assert sorted(bodies) == sorted(str(asked.prompt(row).tolist()) for row in range(3))
    for body in bodies.values():
        told = (body["model"], body["n"], body["max_tokens"], body["temperature"], body["top_p"], body["top_k"])
        assert told == ("big", 1, 40, 0.5, 0.9, -1)
        assert (body["min_p"], body["repetition_penalty"]) == (0, 1), "or the server takes those of the checkpoint"
    assert len({body["seed"] for body in bodies.values()}) == 3
    assert {(head["path"], head["Authorization"]) for head in server.headers} == {
        ("/v1/completions", f"Bearer {SECRET}")
    }


@pytest.mark.parametrize(
    ("reason", "limit", "expected"),
    [("stop", 20, (3, True)), ("length", 20, (3, False)), ("stop", 3, (3, False)), ("stop", 2, (2, False))],
)
def test_a_servers_text_is_whole_where_it_stopped_by_itself_and_fits(
    asked: EncodedSet, tokenizer: Any, reason: str, limit: int, expected: tuple[int, bool]
) -> None:
    three = tokenizer.decode(tokenizer("a few words of text")["input_ids"][:3])
    assert len(tokenizer(three)["input_ids"]) == 3
    with serving(echoing(tokenizer, lambda _: completes(three, reason))) as server:
        (text, *_) = ask(server, asked, tokenizer, limit=limit)
    assert (len(text.token_ids), text.finished) == expected


def test_a_server_of_another_tokenizer_is_given_text(asked: EncodedSet, tokenizer: Any) -> None:
    other, said = train_tokenizer(["entirely different language here"], vocab_size=270), list[str]()
    with serving(echoing(other, lambda _: completes("x"))) as server:
        ask(server, asked, tokenizer, said=said)
    assert {prompt_of(body) for body in server.bodies[1:]} == {"a few words", "some text", "text of words of text"}
    assert len(said) == 1 and "is given text" in said[0]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (Reply(f"{SECRET} is overloaded", 500), "2 of 3 requests failed, the last with: HTTP 500"),
        (completes("x", "content_filter"), "2 of 3 requests failed, the last with: no completion"),
        (completes("x", None), "no completion"),
        (Reply('{"choices": [{"text": null, "finish_reason": "stop"}]}'), "no completion"),
        (Reply(f"no {SECRET}", 401), "rollout.key_env: http"),
        (Reply("no such model", 404), "rollout.server_model=big: http"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_write_is_an_error_in_one_line_without_the_key(
    asked: EncodedSet, tokenizer: Any, bad: Reply, told: str
) -> None:
    script = echoing(tokenizer, lambda prompt: completes("x") if prompt == "some text" else bad)
    with serving(script) as server, pytest.raises(UserError) as caught:
        ask(server, asked, tokenizer)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
