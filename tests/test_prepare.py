"""What is refused before the runs of a command start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.prepare import make_missing_teachers
from kdrun.words import read_flags
from tests.conftest import SMALL, Kdrun, read_json

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom kdrun.runs.directory import take\n"
    "take(Path(sys.argv[1]), key='x')\nprint('taken', flush=True)\nsys.stdin.read()\n"
)


def test_a_run_that_another_process_has_is_not_resumed(kdrun_here: Kdrun, workspace: Path) -> None:
    run = workspace / "outputs" / "taken"
    words = ["loss=sft", *SMALL, "train.max_steps=2", "train.save_every=1", "evaluate=false"]
    kdrun_here("train", *words, f"hydra.run.dir={run}")
    (run / "run.json").write_text(json.dumps(read_json(run / "run.json") | {"status": "interrupted"}))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        done = kdrun_here("train", "resume=outputs/taken", check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("kdrun: resume=outputs/taken: ") and done.stderr.count("\n") == 1
        assert str(process.pid) in done.stderr or sys.platform != "linux"
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        process.kill()
    kdrun_here("train", "resume=outputs/taken")
    assert read_json(run / "run.json")["status"] == "done"


def test_a_teacher_has_no_folder_before_it_is_whole_and_one_that_was_begun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that looks meanwhile must find no teacher, and not the beginning of one."""
    monkeypatch.chdir(tmp_path)
    teacher, told = Path("outputs/teachers/tiny-unicode"), []
    cells = compose_cells("train", [], read_flags([]), CONF)

    def begun(words: list[str]) -> None:
        told.append(words[-1])
        folder = Path(words[-1].split("=")[1].strip("'"))
        (folder / "teacher").mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
        assert not teacher.exists()
        raise KeyboardInterrupt

    def ended(words: list[str]) -> None:
        told.append(words[-1])
        folder = Path(words[-1].split("=")[1].strip("'"))
        (folder / "teacher" / "config.json").write_text("{}")
        (folder / "run.json").write_text(json.dumps({"status": "done"}))

    with pytest.raises(KeyboardInterrupt):
        make_missing_teachers(cells, None, CONF, train=begun)
    make_missing_teachers(cells, None, CONF, train=ended)
    assert [word.split("=")[0] for word in told] == ["hydra.run.dir", "resume"]
    assert read_json(teacher / "run.json")["status"] == "done"
    make_missing_teachers(cells, None, CONF, train=begun)
    assert len(told) == 2 and [path.name for path in teacher.parent.glob("[!.]*")] == ["tiny-unicode"]
