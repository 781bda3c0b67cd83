"""Sweeps by several processes: a GPU each (pretended ones), jobs of a cluster, and what is refused beforehand."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.launch import launch
from tests.conftest import SMALL, Kdrun, read_json
from tests.forked import Forked

CELL = [*SMALL, "train.max_steps=4", "evaluate=false", "teacher=live", "loss=sft"]
# Imported by every process as it starts: how many models are alive in it when a cell begins.
COUNT = """import gc
import os

from kdrun.runs.directory import RunDirectory

start = RunDirectory.start


def counted(*arguments, **settings):
    from transformers import PreTrainedModel

    alive = sum(isinstance(thing, PreTrainedModel) for thing in gc.get_objects())
    with open("alive.txt", "a") as file:
        file.write(f"{os.getpid()} {alive}\\n")
    return start(*arguments, **settings)


RunDirectory.start = counted
"""


@pytest.fixture
def counted(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """alive.txt, a line a cell."""
    (tmp_path / "sitecustomize.py").write_text(COUNT)
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), inherited])))
    (workspace / "alive.txt").unlink(missing_ok=True)
    return workspace / "alive.txt"


def test_a_failed_cell_leaves_no_model_in_memory(kdrun: Kdrun, workspace: Path, counted: Path) -> None:
    done = kdrun("sweep", "train.lr=1e30,1e31,1e-3", "train.clip_norm=null", *CELL,
                 "hydra.sweep.dir=outputs/sweep/alive", check=False)  # fmt: skip
    folder = workspace / "outputs" / "sweep" / "alive"
    states = [read_json(folder / str(i) / "run.json")["status"] for i in range(3)]
    assert (done.returncode, states) == (1, ["failed", "failed", "done"])
    assert [line.split()[1] for line in counted.read_text().splitlines()] == ["0", "0", "0"]
    assert "NonFiniteLoss" in (folder / "0" / "log.txt").read_text(), "its traceback"


@pytest.mark.slow
def test_every_process_has_one_gpu_and_a_failing_cell_stops_no_other(
    kdrun: Kdrun, workspace: Path, counted: Path, tmp_path: Path
) -> None:
    """Two pretended GPUs, six jobs, three of which fail: as many processes as GPUs, each with one of its own."""
    done = kdrun("sweep", "train.lr=1e30,1e-3", "seed=1,2,3", "train.clip_norm=null", *CELL,
                 "hydra/launcher=joblib", "hydra.sweep.dir=outputs/sweep/gpus", check=False, fresh=True,
                 env={"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)})  # fmt: skip
    folder = workspace / "outputs" / "sweep" / "gpus"
    records = [read_json(folder / str(i) / "run.json") for i in range(6)]
    assert [record["status"] for record in records] == ["failed"] * 3 + ["done"] * 3, done.stderr
    assert done.returncode == 1
    pairs = {(record["gpu"], record["process"]) for record in records}
    assert {gpu for gpu, _ in pairs} <= {"0", "1"}
    assert len(pairs) == len({gpu for gpu, _ in pairs}) == len({process for _, process in pairs}), "never two on one"
    assert {line.split()[1] for line in counted.read_text().splitlines()} == {"0"}
    assert "Traceback" not in done.stderr.split("Error executing job")[0], "a worker's output is in its cell's log"
    log = (folder / "0" / "log.txt").read_text()
    assert "NonFiniteLoss" in log and "torch sees no GPU" in log
    assert "best: cell" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_workers_of_joblib_too(sign: signal.Signals, workspace: Path) -> None:
    folder = workspace / "outputs" / "sweep" / f"stopped-{sign.name}"
    words = ["seed=1,2,3", *CELL, "train.max_steps=100000", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdrun", "sweep", *words, f"hydra.sweep.dir={folder}"], cwd=workspace, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: all((folder / cell / "metrics.jsonl").exists() for cell in ("0", "1")), process)
    pids = [read_json(folder / cell / "run.json")["process"] for cell in ("0", "1")]
    if sign == signal.SIGINT:  # a terminal's Ctrl-C goes to every process of the group
        os.killpg(process.pid, sign)
    else:
        process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == (130 if sign == signal.SIGINT else 143), err
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    assert [read_json(folder / cell / "run.json")["status"] for cell in ("0", "1")] == ["interrupted"] * 2
    assert not (folder / "2").exists()
    assert f"kdrun sweep resume={folder}" in out


def wait_until(happened: object, process: subprocess.Popen | Forked, seconds: float = 120) -> None:
    """Wait for another process, and fail with its output when it ends first."""
    assert callable(happened)
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cluster_runs_each_cell_as_a_job_of_its_own(kdrun: Kdrun, workspace: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    kdrun("sweep", "seed=1,2", *CELL, "hydra/launcher=submitit_local", "train.device=cpu",
          "hydra.sweep.dir=outputs/sweep/cluster")  # fmt: skip
    records = [read_json(workspace / f"outputs/sweep/cluster/{i}/run.json") for i in range(2)]
    assert [record["status"] for record in records] == ["done", "done"]
    assert len({record["process"] for record in records}) == 2


REFUSED = {
    "hydra/launcher=submitit_local": ["train.device=auto", "train.device=cuda", "gpus_per_node=1", "train.device=cpu"],
    "hydra/launcher=submitit_local train.device=cuda hydra.launcher.gpus_per_node=1": ["hydra/launcher=joblib"],
    "hydra/launcher=submitit_slurm": ["srun", "hydra/launcher=joblib"],
    "hydra/launcher=joblib train.device=cuda:1": ["train.device=cuda:1", "type train.device=cuda"],
    "hydra/launcher=joblib hydra.launcher.n_jobs=3": ["n_jobs=3", "there are 2", "train.device=cpu"],
    "hydra/launcher=joblib hydra.launcher.n_jobs=-1": ["n_jobs=-1", "there are 2"],
    "hydra/launcher=loky": ["no hydra/launcher=loky", "kdrun[sweep]"],
    "hydra.sweep.subdir=x": ["hydra.sweep.subdir", "leave it out"],
    "train.lr=1,2,1": ["train.lr=1,2,1", "twice"],
    "--cfg job": ["--cfg", "kdrun train --cfg"],
    "resume=nowhere": ["resume=nowhere", "no such folder"],
}


@pytest.mark.parametrize("typed", REFUSED)
def test_a_sweep_that_cannot_run_as_it_is_meant_is_refused_in_one_line(
    typed: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(SystemExit) as stop:
        launch("train", ["--multirun", "seed=1,2", *CELL, *typed.split()], CONF)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == "" and err.count("\n") == 1 and err.startswith("kdrun: "), err
    for part in REFUSED[typed]:
        assert part in err


def test_a_cluster_job_on_a_gpu_must_ask_for_one(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(workspace)
    for device, wanted in (("cuda", "hydra.launcher.gpus_per_node=1"), ("auto", "train.device=cpu")):
        words = ["seed=1,2", *CELL, "hydra/launcher=submitit_slurm", f"train.device={device}"]
        with pytest.raises(SystemExit):
            launch("train", ["--multirun", *words], CONF)
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"train.device={device}" in line and wanted in line
