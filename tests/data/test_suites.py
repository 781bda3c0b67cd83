"""Suites: found under every name that a copy bears, fetched from a hub on the loopback, refused in one line."""

import hashlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdrun.data.suites import SUITES, check_suite, check_suites, find_suite, load_suite, suite_name
from kdrun.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")


def write(path: Path, *outputs: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"Say {i}", "input": "", "output": output} for i, output in enumerate(outputs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@needs_shared
@pytest.mark.parametrize(("name", "rows"), [("dolly", 250), ("vicuna", 80), ("sni", 400)])
def test_minillms_own_folders_are_read_under_our_names(name: str, rows: int, caplog: pytest.LogCaptureFixture) -> None:
    examples = load_suite(name, directory=str(SHARED))
    assert len(examples) == rows == check_suite(name, str(SHARED))
    warned = [record.getMessage() for record in caplog.records if "published set" in record.getMessage()]
    assert bool(warned) == (rows != SUITES[name].num_rows)


@needs_shared
def test_references_of_sni_are_stripped_and_distinct_and_nothing_else_changes() -> None:
    lines = [json.loads(line) for line in (SHARED / "sinst" / "valid.jsonl").read_text().splitlines()]
    examples = load_suite("sni", directory=str(SHARED))
    for row, example in zip(lines, examples, strict=True):
        assert (example.instruction, example.input) == (row["instruction"], row["input"])
        assert set(example.references) == {text.strip() for text in row["output"]}
        assert len(set(example.references)) == len(example.references)
        assert example.references[0] == row["output"][0].strip()
    assert max(len(example.references) for example in examples) > 1


@needs_shared
def test_tidy_references_change_no_rouge_score() -> None:
    from kdrun.evaluation.rouge import rouge_scores

    lines = [json.loads(line) for line in (SHARED / "sinst" / "valid.jsonl").read_text().splitlines()]
    raw = [row["output"] for row in lines]
    tidy = [list(example.references) for example in load_suite("sni", directory=str(SHARED))]
    changed = [i for i in range(len(raw)) if raw[i] != tidy[i]]
    assert changed
    texts = ["the " + tidy[i][0][:40] for i in changed]
    assert rouge_scores(texts, [raw[i] for i in changed]) == rouge_scores(texts, [tidy[i] for i in changed])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("self_instruct", "self-inst/valid.jsonl"),
        ("self_instruct", "self_inst/valid.jsonl"),
        ("self_instruct", "self_instruct.jsonl"),
        ("vicuna", "Vicuna/valid.jsonl"),
        ("sni", "sinst/11_/valid.jsonl"),
        ("sni", "sni/valid.jsonl"),
        ("unni", "uinst/11_/valid.jsonl"),
        ("dolly", "dolly/valid.jsonl"),
    ],
)
def test_a_local_copy_is_found_in_every_usual_place(tmp_path: Path, name: str, place: str) -> None:
    path = write(tmp_path / place, "a", ["b", "c"])
    assert find_suite(name, str(tmp_path)) == path
    assert [example.references for example in load_suite(name, directory=str(tmp_path))] == [("a",), ("b", "c")]


def test_the_long_references_of_sni_are_preferred_to_the_whole_set(tmp_path: Path) -> None:
    write(tmp_path / "sinst" / "valid.jsonl", "short")
    write(tmp_path / "sinst" / "11_" / "valid.jsonl", "long")
    assert load_suite("sni", directory=str(tmp_path))[0].response == "long"


def test_of_unni_the_first_ten_thousand_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "unni.jsonl", *map(str, range(10_000)))
    with path.open("a") as file:
        file.write("not JSON, and never looked at\n")
    assert [example.response for example in load_suite("unni", directory=str(tmp_path))] == list(
        map(str, range(10_000))
    )


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("dolly", "dolly"),
        ("sets/mine.jsonl", "mine"),
        ("sets/mine/valid.jsonl", "mine"),
        ("/x/poems/test.jsonl", "poems"),
        ("validation.jsonl", "validation"),
    ],
)
def test_a_suite_is_called_by_its_name_its_file_or_its_folder(suite: str, name: str) -> None:
    assert suite_name(suite) == name


def test_a_file_next_door_takes_the_name_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "poems" / "valid.jsonl", "x").parent
    monkeypatch.chdir(folder)
    assert suite_name("valid.jsonl") == "poems"
    assert load_suite("valid.jsonl")[0].references == ("x",)


def test_a_file_of_ones_own_is_taken_as_it_stands_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "mine.jsonl", ["  indented", "  indented"])
    with caplog.at_level(logging.WARNING):
        assert load_suite(str(path))[0].references == ("  indented", "  indented")
    assert not caplog.records


@pytest.mark.parametrize(
    ("suites", "directory", "words"),
    [
        (["doly"], None, ["eval.suites=[doly]", "dolly, self_instruct, vicuna, sni, unni", ".jsonl"]),
        (["none.jsonl"], None, ["eval.suites=[none.jsonl]", "no such file"]),
        (["dolly"], "nowhere", ["eval.suites_path=nowhere", "no such folder"]),
        (["sni"], ".", ["eval.suites_path=.", "sinst/11_/valid.jsonl", "sni.jsonl"]),
        (["bad.jsonl"], None, ["bad.jsonl:2", '"output" is missing']),
        (["a/good.jsonl", "b/good.jsonl"], None, ["eval.suites=[...,b/good.jsonl]", "good"]),
        # The unknown name is told before any file is read.
        (["bad.jsonl", "doly"], None, ["eval.suites=[doly]"]),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    suites: list[str], directory: str | None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a/good.jsonl"), "x")
    write(Path("b/good.jsonl"), "x")
    Path("bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    with pytest.raises(UserError) as error:
        check_suites(suites, directory)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_offline_and_without_a_copy_the_line_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"MiniLLM/uinst cannot be fetched.*eval\.suites_path=FOLDER") as error:
        check_suite("unni")
    assert "\n" not in str(error.value)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub on the loopback that holds MiniLLM/sinst and nothing else; yields its address."""
    content = write(tmp_path / "served.jsonl", [" a ", "a", "b"], "c").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path == "/datasets/MiniLLM/sinst/resolve/main/11_/valid.jsonl"
            self.send_response(200 if known else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            if not known:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_published_set_is_fetched_from_the_hub_once(hub: str, tmp_path: Path) -> None:
    program = (
        "from kdrun.data.suites import check_suite, load_suite\n"
        "from kdrun.errors import UserError\n"
        "print([e.references for e in load_suite('sni')])\n"
        "try:\n    check_suite('dolly')\nexcept UserError as error:\n    print(error)\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment = {**kept, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    first, _, _ = program.partition("try:")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    references, refusal = done.stdout.splitlines()
    assert references == "[('a', 'b'), ('c',)]"
    assert "eval.suites=[dolly]" in refusal and "MiniLLM/dolly" in refusal
    again = subprocess.run(
        [sys.executable, "-c", first], env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.stdout.splitlines() == [references], again.stderr
