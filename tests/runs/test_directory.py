"""The run record: always whole, says how a run ended, keeps earlier attempts."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun.errors import UserError
from kdrun.runs.directory import (
    MetricsFile,
    RunDirectory,
    claim,
    drop_lines_after,
    evaluation_directory,
    find_runs,
    json_lines,
    write_json,
)


def start(path: Path) -> RunDirectory:
    return RunDirectory.start(path, command="train", config={"loss": {"mu": 0.5}}, overrides=["mu=0.5"])


def record(path: Path) -> dict:
    return json.loads((path / "run.json").read_text())


def test_a_run_says_what_runs_while_it_runs_and_done_at_its_end(tmp_path: Path) -> None:
    run = start(tmp_path / "a")
    with run.recorded():
        assert record(run.path)["status"] == "running"
    done = record(run.path)
    assert done["status"] == "done"
    assert done["error"] is None
    assert done["duration_s"] >= 0
    assert done["overrides"] == ["mu=0.5"]
    assert {"argv", "directory", "git", "versions", "hardware", "started", "ended"} <= done.keys()
    assert run.config() == {"loss": {"mu": 0.5}}


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("broke"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(143), "interrupted")],
)
def test_a_run_that_breaks_says_why_and_the_error_goes_on(error: BaseException, status: str, tmp_path: Path) -> None:
    run = start(tmp_path / "a")
    with pytest.raises(type(error)), run.recorded():
        raise error
    assert record(run.path)["status"] == status
    assert record(run.path)["error"].startswith(type(error).__name__)


def test_a_second_attempt_keeps_the_first_ones_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError), start(tmp_path).recorded():
        raise ValueError("first")
    with start(tmp_path).recorded():
        pass
    assert record(tmp_path)["status"] == "done"
    assert [attempt["error"] for attempt in record(tmp_path)["attempts"]] == ["ValueError: first"]


HOLD = (
    "import sys\nfrom pathlib import Path\nfrom kdrun.runs.directory import RunDirectory\n"
    "run = RunDirectory.start(Path(sys.argv[1]), command='train', config={}, overrides=[])\n"
    "print('started', flush=True)\nsys.stdin.read()\n"
)


def test_a_run_belongs_to_one_process_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        before = record(tmp_path)
        with pytest.raises(UserError) as refused:
            start(tmp_path)
        told = f"process {process.pid} on {platform.node()}" if sys.platform == "linux" else "another process"
        assert str(refused.value).startswith(f"{tmp_path}: {told} writes there")
        assert record(tmp_path) == before
        process.kill()
    with start(tmp_path).recorded():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "config.yaml"}, "the lock is no part of a run"


def test_nan_and_infinity_are_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"], "nothing is left aside"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\xff"])
def test_what_is_no_run_directory_is_refused_naming_the_key(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="run="):
        RunDirectory.open(tmp_path, key="run")


def test_evaluations_of_one_name_do_not_overwrite_one_another(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        folder = evaluation_directory(tmp_path, "quick")
        folder.mkdir(parents=True)
        names.append(folder.name)
    assert names == ["quick", "quick-2", "quick-3"]


def test_an_evaluation_of_a_run_that_is_under_way_leaves_the_name_to_the_runs_own(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert evaluation_directory(tmp_path, "quick").name == "quick-2"
    with run.recorded():
        pass
    assert evaluation_directory(tmp_path, "quick").name == "quick"


def test_lines_of_steps_to_be_done_again_are_dropped_with_a_torn_last_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (0, 5, 10, 15):
        file.write(step=step, loss=1.0)
    file.close()
    path.write_text(path.read_text() + '{"step": 2')
    drop_lines_after(path, 10)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 5, 10]


def test_a_newline_alone_ends_a_json_line(tmp_path: Path) -> None:
    """Generated text holds U+0085 and U+2028, at which str.splitlines breaks."""
    path = tmp_path / "examples.jsonl"
    texts = ["one\u2028two\u0085three", "four\x1cfive\nsix"]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    assert [json.loads(line)["text"] for line in json_lines(path)] == texts
    assert json_lines(tmp_path / "missing.jsonl") == []


def test_runs_are_found_below_a_folder_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "b", "a", "9/eval/quick"):
        start(tmp_path / name)
    assert [run.path.name for run in find_runs(tmp_path)] == ["9", "10", "a", "b"]
    assert find_runs(tmp_path / "missing") == []


def test_a_claimed_folder_is_made_by_one_at_a_time(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    with claim(tmp_path / "teacher"), pytest.raises(Timeout), FileLock(tmp_path / ".teacher.lock", timeout=0.05):
        pass
