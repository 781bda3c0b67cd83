"""kdrun doctor on the tiny pair, and the canaries that keep `kdrun train` from its first step."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdrun.canaries.checklist import CANARIES
from kdrun.canaries.environment import environment
from kdrun.cli import CONF
from kdrun.data import batch as batches
from kdrun.data.scored import scored_positions
from kdrun.launch import doctor
from tests.conftest import SMALL, Kdrun, read_json

Doctor = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def doctor_here(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Doctor:
    """Run the doctor in this process and in the workspace."""
    monkeypatch.chdir(workspace)

    def run(*words: str, file: Path | None = None) -> subprocess.CompletedProcess:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            doctor([*SMALL, *words], CONF, json=file)
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), *capfd.readouterr())

    return run


def shift_labels_by_two(patch: pytest.MonkeyPatch) -> None:
    def shifted(labels_BT: Any) -> Any:
        index_N, target_N = scored_positions(labels_BT)
        return index_N - 1, target_N

    patch.setattr(batches, "scored_positions", shifted)


def lines_of(text: str) -> dict[str, str]:
    """{name of a check: its verdict} of what was printed."""
    lines = [line for line in text.splitlines() if line[:2] == "  " and line[2] != " "]
    return {line[11:28].strip(): line[2:10].strip() for line in lines}


def test_a_healthy_training_passes_every_check_and_nothing_is_left_but_the_file_asked_for(
    doctor_here: Doctor, workspace: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    done = doctor_here(file=tmp_path / "found.json")
    assert done.returncode == 0, done.stdout
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before
    checks = environment(outputs=workspace, constraints=workspace, tracking="auto")
    found = lines_of(done.stdout)
    expected = [*checks, "teacher is there", *(name for name, *_ in CANARIES), "tokenizers", "held-out"]
    assert list(found) == expected, "printed in this order, each under its own name"
    assert all(found[name] == "ok" for name, *_ in CANARIES)
    content = read_json(tmp_path / "found.json")
    assert [f["name"] for part in content["findings"].values() for f in part] == expected
    assert content["counts"]["FAIL"] == 0


def test_a_fault_in_the_code_fails_by_name_with_exit_1(doctor_here: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_labels_by_two(monkeypatch)
    done = doctor_here("loss=fkl")
    assert done.returncode == 1
    found = lines_of(done.stdout)
    assert {name for name, verdict in found.items() if verdict == "FAIL"} >= {"positions", "cross-entropy", "gradient"}
    assert "Traceback" not in done.stderr


def test_a_teacher_that_is_not_made_yet_has_a_random_one_stand_in(doctor_here: Doctor, workspace: Path) -> None:
    done = doctor_here("pair.teacher=outputs/teachers/later")
    found = lines_of(done.stdout)
    assert found["teacher is there"] == "warning"
    assert found["held-out"] == "skipped"
    assert found["taid"] == found["chunks"] == found["gradient"] == "ok"
    assert not (workspace / "outputs" / "teachers" / "later").exists()


def test_a_fine_tuning_names_the_checks_that_need_a_teacher(doctor_here: Doctor) -> None:
    done = doctor_here("loss=sft", "role=teacher", "pair.teacher=outputs/teachers/later")
    assert done.returncode == 0, done.stdout
    found = lines_of(done.stdout)
    assert {name for name, verdict in found.items() if verdict == "skipped"} - {"extras"} == {"teacher", "taid"}


def test_a_teacher_that_cannot_be_taken_fails_and_the_rest_is_looked_at(
    doctor_here: Doctor, workspace: Path, tmp_path: Path
) -> None:
    """Two ids of its tokenizer are exchanged."""
    teacher, other = workspace / "outputs" / "teachers" / "tiny-unicode" / "teacher", tmp_path / "other"
    shutil.copytree(teacher, other)
    content = read_json(other / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    done = doctor_here(f"pair.student={teacher}", f"pair.teacher={other}")
    assert "different tokenizers" in done.stdout
    found = lines_of(done.stdout)
    assert done.returncode == 1
    assert (found["teacher is there"], found["taid"], found["cross-entropy"]) == ("FAIL", "skipped", "ok")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resume=outputs/akl"], "kdrun: resume=:"),
        (["data=jsonl", "data.path=none.jsonl"], "kdrun: data.path=none.jsonl"),
    ],
)
def test_a_mistake_in_its_words_is_one_line_and_exit_2(doctor_here: Doctor, words: list[str], said: str) -> None:
    done = doctor_here(*words)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


RUN = ["train.max_steps=1", "evaluate=false"]


def test_a_training_notes_its_canaries(kdrun_here: Kdrun, workspace: Path) -> None:
    kdrun_here("train", "loss=fkl", *SMALL, *RUN, "hydra.run.dir=outputs/canaries")
    figures = read_json(workspace / "outputs" / "canaries" / "run.json")["canaries"]
    assert set(figures) == {"head", "rows", "scored tokens", "cross-entropy", "student = teacher", "shift", "teacher"}
    assert figures["student = teacher"] < 1e-6 < figures["shift"]
    assert figures["cross-entropy"] < 1e-5


def test_a_lossy_cache_is_looked_at_on_its_own_path(kdrun_here: Kdrun, workspace: Path) -> None:
    words = ["teacher=cached", "cache.topk=20", "train.watch_teacher=false"]
    kdrun_here("train", "loss=fkl", *SMALL, *RUN, *words, "hydra.run.dir=outputs/canaries-topk")
    figures = read_json(workspace / "outputs" / "canaries-topk" / "run.json")["canaries"]
    assert max(figures["student = teacher"], figures["teacher"]) < 1e-6


def test_a_training_with_a_fault_does_not_start_and_says_which_canary(
    kdrun_here: Kdrun, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_labels_by_two(monkeypatch)
    done = kdrun_here("train", "loss=fkl", *SMALL, *RUN, "hydra.run.dir=outputs/canary", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("kdrun: canary 'cross-entropy': ")
    assert "Traceback" not in done.stderr
    record = read_json(workspace / "outputs" / "canary" / "run.json")
    assert record["status"] == "failed"
    assert "cross-entropy" in record["error"]
    assert not (workspace / "outputs" / "canary" / "student").exists()
