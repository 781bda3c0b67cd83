"""The teacher and an SFT run stand beside the students, or a line says what to type."""

from pathlib import Path

import pytest

from kdrun.analysis.anchors import with_teacher_and_sft
from kdrun.analysis.comparison import read_rows
from kdrun.runs.directory import RunDirectory, write_json
from tests.analysis.made_runs import add_evaluation, make_run, numbered

WORDS = (
    "loss=akl", "rollout=mixed", "rollout.share=0.3", "data.max_rows=9", "eval.num_examples=3", "teacher=cached",
    "seed=4",
)  # fmt: skip


def student(folder: Path, loss: str = "akl", **pair: str) -> Path:
    settings = {"pair": {"name": "tiny", "teacher": "outputs/teacher", "student": None, **pair}}
    settings |= {"data": {"name": "unicode"}, "loss": {"name": loss}}
    return make_run(folder, settings=settings, overrides=WORDS)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student that was trained from a folder that is not today's; its teacher is there, with an evaluation."""
    (tmp_path / "typed").mkdir()
    monkeypatch.chdir(tmp_path / "typed")
    run = student(tmp_path / "typed" / "outputs" / "sweep" / "0")
    add_evaluation(run / "eval" / "quick", numbered([3.0, 4.0]), teacher_nll=1.25)
    make_run(tmp_path / "typed" / "outputs" / "teacher", settings={"role": "teacher", "loss": {"name": "sft"}})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "typed" / "outputs"


def test_the_teacher_comes_from_wherever_its_students_say(place: Path) -> None:
    add_evaluation(place / "teacher" / "eval" / "quick", numbered([1.0, 2.0]))
    rows, said = with_teacher_and_sft(read_rows([place / "sweep"]))
    assert [(row.label, row.role) for row in rows] == [("0", "student"), ("teacher", "teacher")]
    assert rows[1].metrics["quick/nll"] == 1.5
    assert not any("teacher" in line.split(":")[0] for line in said)
    again, _ = with_teacher_and_sft(read_rows([place]))
    assert len(again) == 2, "it is not added twice"


@pytest.mark.parametrize("fingerprint", ["other", None])
def test_a_teacher_that_saw_other_examples_gets_what_is_known_and_a_line_to_type(place: Path, fingerprint: str) -> None:
    if fingerprint:
        add_evaluation(place / "teacher" / "eval" / "other", numbered([1.0, 2.0]), fingerprint=fingerprint)
    rows, said = with_teacher_and_sft(read_rows([place / "sweep"]))
    assert rows[1].metrics["quick/nll"] == 1.25, "its students' evaluation has the teacher's NLL"
    words = f"kdrun evaluate run={place / 'teacher'} eval.num_examples=3 data=unicode data.max_rows=9"
    assert said[0] == f"teacher: no evaluation on the students' examples; type: {words}"


def test_a_teacher_from_the_hub_is_read_from_its_students_folders(tmp_path: Path) -> None:
    run = student(tmp_path / "akl", teacher="org/teacher")
    add_evaluation(run / "eval" / "quick", numbered([3.0]))
    rows, said = with_teacher_and_sft(read_rows([tmp_path]))
    assert (rows[1].label, rows[1].metrics) == ("teacher", {})
    assert f"kdrun evaluate run={run} role=teacher" in said[0]
    other = add_evaluation(run / "eval" / "quick-2", numbered([1.0]))
    write_json(other / "run.json", {"status": "done", "role": "teacher"})
    rows, said = with_teacher_and_sft(read_rows([tmp_path]))
    assert rows[1].metrics["quick/nll"] == 1.0
    assert len(said) == 1, "only SFT is missing"


def test_sft_is_what_the_student_started_from_or_a_neighbour_of_equal_pair_and_data(tmp_path: Path) -> None:
    student(tmp_path / "sweep" / "0")
    _, said = with_teacher_and_sft(read_rows([tmp_path / "sweep"]))
    assert said[-1] == "no SFT run to compare with; type: kdrun train loss=sft data.max_rows=9 eval.num_examples=3"
    student(tmp_path / "other-pair", "sft", name="other")
    running = student(tmp_path / "running", "sft")
    RunDirectory.open(running, key="run").note(status="running")
    rows, _ = with_teacher_and_sft(read_rows([tmp_path / "sweep"]))
    assert len(rows) == 2, "neither is like the students and done"
    beside = student(tmp_path / "beside", "sft")
    rows, said = with_teacher_and_sft(read_rows([tmp_path / "sweep"]))
    assert (rows[-1].label, rows[-1].folder) == ("sft", beside)
    assert said[-1] == f"sft: taken from {beside}"
    start = student(tmp_path / "far" / "away" / "start", "sft")
    student(tmp_path / "sweep" / "0b", student=str(start))
    rows, _ = with_teacher_and_sft(read_rows([tmp_path / "sweep" / "0b"]))
    assert rows[-1].folder == start


def test_without_students_nothing_is_added(tmp_path: Path) -> None:
    make_run(tmp_path / "teacher", settings={"role": "teacher"})
    rows = read_rows([tmp_path])
    assert with_teacher_and_sft(rows) == (rows, [])
