"""A sweep's cells as their files say, time left worked by hand, dead cells found by their locks."""

import json
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kdrun.errors import UserError
from kdrun.runs.progress import progress, progress_in
from kdrun.runs.sweep import Cell, best, held, objective, read_cells, read_sweep, settle, start_sweep, time_left

HOLD = "import sys\nfrom pathlib import Path\nfrom kdrun.runs.sweep import held\n" \
       "with held(Path(sys.argv[1])) as free:\n    print(free, flush=True)\n    sys.stdin.read()\n"  # fmt: skip


def stamp(seconds: float = 0) -> str:
    """A time in run.json's form, this long ago."""
    return (datetime.now().astimezone() - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def make_sweep(folder: Path, cells: int = 4) -> Path:
    start_sweep(
        folder, command="train", flags=[], words=["loss=akl", "loss.mu=0.1,0.2"], fixed=["loss"],
        cells=[[f"loss.mu=0.{i + 1}"] for i in range(cells)], total=cells, launcher="basic",
    )  # fmt: skip
    return folder


def make_cell(folder: Path, status: str, *, fkl: float | None = None, seconds: float = 10, error: str = "") -> None:
    folder.mkdir()
    ended = status != "running"
    record = {"status": status, "started": stamp(seconds), "ended": stamp() if ended else None,
              "duration_s": seconds if ended else None, "error": error or None,
              "overrides": ["loss=akl", "loss.mu=0.7"]}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    if fkl is not None:
        (folder / "summary.json").write_text(json.dumps({"valid/fkl": fkl, "valid/nll": 9.0}))


def test_states_words_and_objective_come_from_the_files(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "s")
    make_cell(folder / "0", "done", fkl=0.5)
    make_cell(folder / "1", "failed", error="ValueError: broke")
    make_cell(folder / "2", "running")
    (folder / "2" / "progress.json").write_text(
        json.dumps({"name": "train", "done": 3, "total": 9, "left_s": 6.0, "time": time.time()})
    )
    cells = read_cells(folder)
    assert [cell.status for cell in cells] == ["done", "failed", "running", "waiting"]
    assert [cell.words for cell in cells][::3] == [["loss.mu=0.1"], ["loss.mu=0.4"]]
    assert cells[0].objective == ("valid/fkl", 0.5)
    assert (cells[2].work, cells[2].done, cells[2].total, cells[2].left_s) == ("train", 3, 9, 6.0)
    assert best(cells) is cells[0]


def test_a_search_shows_the_words_that_it_chose(tmp_path: Path) -> None:
    start_sweep(tmp_path, command="train", flags=[], words=["loss=akl", "loss.mu=interval(0,1)"], fixed=["loss"],
                cells=None, total=2, launcher="basic")  # fmt: skip
    make_cell(tmp_path / "0", "done", fkl=1.0)
    assert [cell.words for cell in read_cells(tmp_path)] == [["loss.mu=0.7"], []]


def test_what_failed_before_a_sweep_went_on_waits_again(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "s", 2)
    make_cell(folder / "0", "failed")
    make_cell(folder / "1", "done", fkl=1.0)
    assert [cell.status for cell in read_cells(folder, since=stamp(-5))] == ["waiting", "done"]
    assert [cell.status for cell in read_cells(folder, since=stamp(60))] == ["failed", "done"]


def test_the_objective_is_the_first_that_the_summary_has() -> None:
    assert objective({"valid/nll": 2.0, "valid/topk_fkl": 1.0}) == ("valid/topk_fkl", 1.0)
    assert objective({"valid/fkl": None, "valid/nll": 2.0}) == ("valid/nll", 2.0)
    assert objective({}) is None


def cell(number: int, status: str, spent: float = 0, left: float | None = None) -> Cell:
    return Cell(number, Path(str(number)), [], status, left_s=left, spent_s=spent)


def test_time_left_worked_by_hand() -> None:
    assert time_left([cell(0, "waiting")]) is None, "nothing is known yet"
    assert time_left([cell(0, "done", 10), cell(1, "failed", 1)]) is None, "nothing is left"
    # Done in 10 and 20 s: 15 s a cell. One has run 5 s, two wait: (10 + 2 * 15) / 1.
    serial = [
        cell(0, "done", 10),
        cell(1, "done", 20),
        cell(2, "running", 5, 3),
        cell(3, "waiting"),
        cell(4, "waiting"),
    ]
    assert time_left(serial) == pytest.approx(40)
    # Two at once, none done: each takes 4 + 6 or 8 + 4, so 11 s; 7 and 4 are left, one waits: (7 + 4 + 11) / 2.
    parallel = [cell(0, "running", 4, 6), cell(1, "running", 8, 4), cell(2, "waiting")]
    assert time_left(parallel) == pytest.approx(11)


def test_a_cell_whose_process_is_dead_is_interrupted_and_one_that_is_held_is_left(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "s", 2)
    make_cell(folder / "0", "running")
    make_cell(folder / "1", "running")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "1")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        settle(folder)
        with held(folder / "1") as free:
            assert not free
        process.kill()
    assert [cell.status for cell in read_cells(folder)] == ["interrupted", "running"]
    settle(folder)
    assert [cell.status for cell in read_cells(folder)] == ["interrupted", "interrupted"]


def test_going_on_is_noted_beside_the_first_start(tmp_path: Path) -> None:
    folder = make_sweep(make_sweep(tmp_path / "s", 2), 2)
    content = read_sweep(folder, key="resume")
    assert len(content["attempts"]) == 2
    assert content["words"] == ["loss=akl", "loss.mu=0.1,0.2"]
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="resume="):
            read_sweep(place, key="resume")


def test_a_cells_progress_goes_to_a_file_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_in(tmp_path):
        with progress("train", 8, done=2) as task:
            content = json.loads((tmp_path / "progress.json").read_text())
            assert (content["name"], content["done"], content["total"], content["left_s"]) == ("train", 2, 8, None)
            for _ in range(6):
                task()
        assert json.loads((tmp_path / "progress.json").read_text())["done"] == 2, "at most once a second"
    assert not (tmp_path / "progress.json").exists()
    assert capsys.readouterr() == ("", "")
