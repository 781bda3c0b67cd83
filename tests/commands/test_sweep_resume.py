"""kdrun sweep resume=DIR: what is done stays, what was stopped goes on, what failed starts afresh."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.launch import launch
from kdrun.runs.sweep import held
from tests.commands.test_sweep_launchers import wait_until
from tests.conftest import SMALL, read_json, read_lines
from tests.forked import KDRUN, Forked

WORDS = [*SMALL, "evaluate=false", "train.log_every=1"]


@pytest.fixture(scope="module")
def stopped(workspace: Path) -> tuple[Path, str, str]:
    """A sweep of four cells: the first is done, the second failed, Ctrl-C came in the third, the fourth waits."""
    folder = workspace / "outputs" / "sweep" / "stopped"
    words = ["loss=akl", "mu=0.3,0.5", "train.lr=1e-3,1e30", *WORDS, "train.max_steps=200", "train.clip_norm=null",
             "train.save_every=20", "hydra.sweep.dir=outputs/sweep/stopped"]  # fmt: skip
    process = Forked(KDRUN, "sweep", *words, cwd=workspace)
    wait_until(lambda: list(folder.glob("2/checkpoints/step-*/state.json")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    return folder, out, err


class Sweep:
    """`kdrun sweep` in this process, in the workspace."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *words: str, command: str = "sweep", code: int = 0) -> tuple[str, str]:
        self.capfd.readouterr()
        ended = 0
        try:
            launch("train", [*(["--multirun"] if command == "sweep" else []), *words], CONF)
        except SystemExit as error:
            ended = int(error.code or 0)
        out, err = self.capfd.readouterr()
        assert ended == code, err
        return out, err


@pytest.fixture
def sweep(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweep:
    monkeypatch.chdir(workspace)
    return Sweep(capfd)


def states(folder: Path) -> list[str]:
    return [
        read_json(folder / str(i) / "run.json")["status"] if (folder / str(i) / "run.json").exists() else "waiting"
        for i in range(4)
    ]


def test_ctrl_c_ends_with_the_summary_and_the_line_to_go_on(stopped: tuple[Path, str, str]) -> None:
    folder, out, err = stopped
    assert states(folder) == ["done", "failed", "interrupted", "waiting"]
    assert "kdrun sweep resume=outputs/sweep/stopped" in out and "best: cell 0" in out
    assert "cell 2 of 4 (mu=0.5 train.lr=0.001): interrupted" in err


REFUSED = {
    "resume=outputs/sweep/stopped seed=3": ["seed cannot be typed", "train.device"],
    "resume=outputs/sweep/stopped train.device=cpu,auto": ["another grid"],
    "resume=outputs/sweep/stopped/0": ["no sweep.json", "kdrun train resume=outputs/sweep/stopped/0"],
    "loss=fkl seed=1,2 hydra.sweep.dir=outputs/sweep/stopped": [
        "holds a sweep already",
        "resume=outputs/sweep/stopped",
    ],
}


@pytest.mark.parametrize("typed", REFUSED)
def test_another_sweep_is_not_mixed_into_a_folder(typed: str, stopped: tuple[Path, str, str], sweep: Sweep) -> None:
    out, err = sweep(*typed.split(), *([] if "resume=" in typed.split(maxsplit=1)[0] else WORDS), code=2)
    lines = [line for line in err.splitlines() if not line.startswith("teacher=cached: ")]
    assert out == "" and len(lines) == 1, err
    for part in REFUSED[typed]:
        assert part in lines[0]


def test_a_sweep_goes_on_only_where_its_paths_are_and_with_the_configs_it_had(
    stopped: tuple[Path, str, str], sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped[0]
    config = folder / "0" / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("batch_size: 8", "batch_size: 4"))
    _, err = sweep("resume=outputs/sweep/stopped", code=2)
    assert "cell 0 was started with train.batch_size=4, now train.batch_size=8" in err
    config.write_text(before)
    monkeypatch.chdir(tmp_path)
    _, err = sweep(f"resume={folder}", code=2)
    assert "cd there first" in err


def test_resume_runs_what_is_not_done_and_nothing_else(stopped: tuple[Path, str, str], sweep: Sweep) -> None:
    folder = stopped[0]
    done_before = (folder / "0" / "run.json").read_bytes()
    with held(folder / "3") as free:
        assert free
        out, err = sweep("resume=outputs/sweep/stopped", "train.device=cpu", code=1)
        assert "cell 3: another process runs it; left to it" in err
    assert states(folder) == ["done", "failed", "done", "waiting"]
    assert (folder / "0" / "run.json").read_bytes() == done_before
    went_on = read_json(folder / "2" / "run.json")
    assert went_on["resumed_from_step"] >= 20
    assert [attempt["status"] for attempt in went_on["attempts"]] == ["interrupted"]
    for cell in ("1", "2"):
        steps = [line["step"] for line in read_lines(folder / cell / "metrics.jsonl") if "train/loss" in line]
        assert steps == sorted(set(steps)), "nothing of an earlier attempt stands twice"
    afresh = read_json(folder / "1" / "run.json")
    assert "resumed_from_step" not in afresh and [a["status"] for a in afresh["attempts"]] == ["failed"]
    assert len({read_json(folder / c / "run.json")["data"]["sha256"] for c in ("0", "1", "2")}) == 1
    assert "1 of 4 cells are done already" in err and "2 done, 1 failed" in out.replace("1 waiting, ", "")
    sweep("resume=outputs/sweep/stopped", code=1)
    assert states(folder) == ["done", "failed", "done", "failed"]


def test_one_cell_goes_on_by_itself(stopped: tuple[Path, str, str], sweep: Sweep, workspace: Path) -> None:
    cell = workspace / "outputs" / "sweep" / "copied" / "0"
    shutil.copytree(stopped[0], cell.parent)
    record = read_json(cell / "run.json")
    (cell / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    with held(cell):
        _, err = sweep("resume=outputs/sweep/copied/0", command="train", code=2)
        assert "another process runs this cell" in err
    sweep("resume=outputs/sweep/copied/0", command="train")
    record = read_json(cell / "run.json")
    assert (record["status"], record["resumed_from_step"], record["group"]) == ("done", 200, "copied")


def test_a_search_is_replayed_and_goes_on(workspace: Path, sweep: Sweep) -> None:
    """Optuna with a seed proposes the same values again when the same objectives come back."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    folder = workspace / "outputs" / "sweep" / "search"
    sweep("loss=akl", "mu=interval(0.1,0.9)", *WORDS, "train.max_steps=2", "hydra/sweeper=optuna",
          "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=3",
          "hydra.sweep.dir=outputs/sweep/search")  # fmt: skip
    overrides = [read_json(folder / cell / "run.json")["overrides"] for cell in "012"]
    shutil.rmtree(folder / "1")
    sweep("resume=outputs/sweep/search")
    assert [read_json(folder / cell / "run.json")["overrides"] for cell in "012"] == overrides
