"""One training in several processes: the same student, one run directory, one end, whoever starts them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SMALL, Kdrun, read_json, read_lines
from tests.forked import KDRUN, Forked

WORDS = ["train", *SMALL, "train.precision=fp32", "train.lr=0.01", "train.schedule=constant", "data.max_rows=20",
         "train.save_every=3"]  # fmt: skip
# Before step 4 (from 0), rank 1 does what stands in its place.
BROKEN = (
    "import os, signal\nfrom kdrun.training import loop\nstep = loop.Loop.step\n"
    "def broken(self, number, **k):\n"
    "    if number == 4 and os.environ['RANK'] == '1':\n        {}\n"
    "    return step(self, number, **k)\n"
    "loop.Loop.step = broken\nfrom kdrun.cli import main\nmain()\n"
)


def start_ranks(*words: str, cwd: Path, count: int = 2, code: str = KDRUN) -> list[Forked]:
    """As torchrun starts them, but in no time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = ({**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count))
    return [Forked(code, *words, cwd=cwd, environment=environment) for environment in environments]


def ended(ranks: list[Forked], *codes: int) -> list[str]:
    """What each rank wrote to standard error, when they have ended with these codes."""
    errors = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == list(codes), errors
    return errors


def assert_same_student(run: Path, other: Path, *, tolerance: float = 1e-5) -> None:
    one, two = (load_file(folder / "student" / "model.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def interrupted(run: Path, name: str) -> Path:
    """A copy of a finished run of six steps, as if it had been stopped after the third."""
    half = Path(shutil.copytree(run, run.with_name(name)))
    shutil.rmtree(half / "checkpoints" / "step-6")
    (half / "run.json").write_text((run / "run.json").read_text().replace('"done"', '"interrupted"'))
    return half


@pytest.fixture(scope="module")
def alone(workspace: Path) -> Path:
    """Six steps of eight rows in one process; the third and the sixth have four, the last of an epoch of 20."""
    folder = workspace / "outputs" / "alone"
    done = Forked(KDRUN, *WORDS, "train.max_steps=6", "hydra.run.dir=outputs/alone", cwd=workspace).completed()
    assert done.returncode == 0, done.stderr
    return folder


def test_several_ranks_make_the_student_and_the_records_of_one_process(alone: Path, workspace: Path) -> None:
    """Three, and the run directory has rank 0's time in its name; teacher=cached: one of the ranks makes the cache."""
    words = [*WORDS, "train.max_steps=6", "teacher=cached", "name=three"]
    told = ended(start_ranks(*words, cwd=workspace, count=3), 0, 0, 0)
    [folder] = (workspace / "outputs" / "train").glob("*_three")
    assert_same_student(folder, alone)
    assert told[1:] == ["", ""], "rank 0 speaks"
    record = read_json(folder / "run.json")
    assert record["status"] == "done" and record["teacher"]["source"] == "cached"
    lines, expected = (read_lines(run / "metrics.jsonl") for run in (folder, alone))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, one in zip(lines, expected, strict=True):
        for key in {"train/loss", "train/grad_norm", "valid/fkl", "epoch"} & one.keys():
            assert line[key] == pytest.approx(one[key], rel=1e-5)
    assert (folder / "log.txt").read_text().count("done: ") == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in alone.iterdir())


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(alone: Path, workspace: Path, kdrun_here: Kdrun) -> None:
    """Two steps in two processes, as launch=ddp says, two in one, two in three."""
    here = "hydra.run.dir=outputs/moving"
    words = [*WORDS, "train.max_steps=2", "train.save_every=1", "evaluate=false", "launch=ddp", "launch.processes=2"]
    ended(start_ranks(*words, here, cwd=workspace), 0, 0)
    kdrun_here("train", "resume=outputs/moving", "train.max_steps=4", "launch=local")
    words = ["train", "resume=outputs/moving", "train.max_steps=6", "launch=local"]
    ended(start_ranks(*words, cwd=workspace, count=3), 0, 0, 0)
    folder = workspace / "outputs" / "moving"
    assert_same_student(folder, alone)
    record = read_json(folder / "run.json")
    assert (record["resumed_from_step"], record["status"]) == (4, "done")
    assert len(record["attempts"]) == 2
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl") if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process_and_the_other_way_round(
    alone: Path, workspace: Path, kdrun_here: Kdrun
) -> None:
    """Its checkpoints, student, validation and evaluation are those of a run in one process."""
    words = [*WORDS, "train.max_steps=6", "train.keep_checkpoints=9", "launch=fsdp", "hydra.run.dir=outputs/sharded"]
    ended(start_ranks(*words, cwd=workspace), 0, 0)
    folder = workspace / "outputs" / "sharded"
    assert_same_student(folder, alone)
    lines, expected = (read_lines(run / "metrics.jsonl") for run in (folder, alone))
    for line, one in zip(lines, expected, strict=True):
        for key in {"train/loss", "train/grad_norm", "valid/fkl"} & one.keys():
            assert line[key] == pytest.approx(one[key], rel=1e-5)
    assert read_json(folder / "run.json")["teacher"] == read_json(alone / "run.json")["teacher"]
    texts = "eval/quick/examples.jsonl"
    assert len(read_lines(folder / texts)) == len(read_lines(alone / texts))
    for run, start in ((folder, kdrun_here), (alone, None)):
        half = interrupted(run, f"{run.name}-half")
        resume = f"resume=outputs/{half.name}"
        if start is None:
            ended(start_ranks("train", resume, "launch=fsdp", "launch.teacher=offloaded", cwd=workspace), 0, 0)
        else:
            start("train", resume, "launch=local")
        assert read_json(half / "run.json")["resumed_from_step"] == 3
        assert_same_student(half, alone)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("deepspeed"), reason="pip install 'kdrun[deepspeed]'")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_goes_on_from_any_launch_and_any_from_it(
    stage: int, alone: Path, workspace: Path, kdrun_here: Kdrun
) -> None:
    """Its checkpoints, student, validation and evaluation are those of a run in one process."""
    zero = ["launch=deepspeed", f"launch.stage={stage}"]
    name = f"outputs/zero{stage}"
    words = [*WORDS, *zero, "train.max_steps=6", "train.keep_checkpoints=9", f"hydra.run.dir={name}"]
    told = ended(start_ranks(*words, cwd=workspace), 0, 0)
    assert told[1] == "" and "Warning" not in told[0]
    folder = workspace / name
    assert_same_student(folder, alone)
    lines, expected = (read_lines(run / "metrics.jsonl") for run in (folder, alone))
    for line, one in zip(lines, expected, strict=True):
        for key in {"train/loss", "train/grad_norm", "valid/fkl"} & one.keys():
            assert line[key] == pytest.approx(one[key], rel=1e-5)
    for run, count in ((folder, 1), (alone, 3)):
        half = interrupted(run, f"{run.name}-by-{stage}")
        if count == 1:
            kdrun_here("train", f"resume=outputs/{half.name}", "launch=local")
        else:
            ended(start_ranks("train", f"resume=outputs/{half.name}", *zero, cwd=workspace, count=count), 0, 0, 0)
        assert read_json(half / "run.json")["resumed_from_step"] == 3
        assert_same_student(half, alone)


def test_a_rank_that_fails_ends_all_and_says_why_in_the_record(workspace: Path) -> None:
    code = BROKEN.format("raise RuntimeError('out of luck')")
    words = [*WORDS, "train.max_steps=9", "evaluate=false", "hydra.run.dir=outputs/failing"]
    ended(start_ranks(*words, cwd=workspace, code=code), 1, 1)
    record = read_json(workspace / "outputs" / "failing" / "run.json")
    assert (record["status"], record["error"]) == ("failed", "rank 1: RuntimeError: out of luck")
    assert "in broken" in record["traceback"]


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step_with_one_checkpoint(
    alone: Path, workspace: Path, kdrun_here: Kdrun
) -> None:
    code = BROKEN.format("os.kill(os.getpid(), signal.SIGINT)")
    words = [*WORDS, "train.max_steps=6", "train.save_every=null", "hydra.run.dir=outputs/stopping"]
    told = ended(start_ranks(*words, cwd=workspace, code=code), 130, 130)
    folder = workspace / "outputs" / "stopping"
    assert "goes on after step 5" in told[0]
    assert read_json(folder / "run.json")["status"] == "interrupted"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-5"]
    kdrun_here("train", "resume=outputs/stopping")
    assert_same_student(folder, alone)


def launched(folder: str, workspace: Path) -> tuple[subprocess.Popen, list[str]]:
    """kdrun with two ranks of its own, in the middle of a long training, and their process ids."""
    words = [*WORDS, "launch=ddp", "launch.processes=2", "evaluate=false", "train.save_every=null"]
    command = [sys.executable, "-m", "kdrun", *words, "train.max_steps=100000", f"hydra.run.dir=outputs/{folder}"]
    process = subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE)
    metrics = workspace / "outputs" / folder / "metrics.jsonl"
    while not (metrics.exists() and "train/loss" in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.slow
def test_kdrun_starts_the_ranks_itself_and_a_killed_one_ends_them_all(workspace: Path) -> None:
    process, children = launched("killed", workspace)
    [rank] = [
        pid for pid in children if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes().replace(b"_RANK", b"")
    ]
    os.kill(int(rank), signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"kdrun: rank 1 was ended by SIGKILL, and with it the run\n" in err
    record = read_json(workspace / "outputs" / "killed" / "run.json")
    assert (record["status"], record["error"]) == ("failed", "rank 1 was ended by SIGKILL")
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.slow
def test_ctrl_c_goes_on_to_the_ranks_which_leave_one_checkpoint(workspace: Path) -> None:
    process, _ = launched("typed", workspace)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().count("stopping when this step is done") == err.decode().count("kdrun: interrupted") == 1
    folder = workspace / "outputs" / "typed"
    assert read_json(folder / "run.json")["status"] == "interrupted"
    step = read_lines(folder / "metrics.jsonl")[-1]["step"]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step}"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["kdrun", "torchrun"])
def test_whoever_starts_the_ranks_the_student_is_the_same(launcher: str, alone: Path, workspace: Path) -> None:
    words = [*WORDS, "train.max_steps=6", "evaluate=false", f"hydra.run.dir=outputs/{launcher}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start, more = ([], ["launch=ddp", "launch.processes=2"]) if launcher == "kdrun" else (torchrun, [])
    subprocess.run([sys.executable, *start, "-m", "kdrun", *words, *more], cwd=workspace, check=True)
    assert_same_student(workspace / "outputs" / launcher, alone)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "launch=ddp train.device=cpu",
            "launch.processes=null: one a GPU, and this training sees none; type launch.pro",
        ),
        ("launch=ddp launch.processes=2 train.device=cuda:1", "train.device=cuda:1: each of 2 processes takes a GPU"),
        ("launch=ddp launch.processes=2 rollout=adaptive", "rollout=adaptive: its buffer of texts is one process's"),
        (
            "launch=fsdp launch.processes=2 rollout=student",
            "launch=fsdp: rollout=student writes with a whole student; ty",
        ),
        ("launch.processes=2", "launch.processes': launch=local does not take it; only launch=ddp,deepspeed,fsdp"),
        ("launch=ddp launch.processes=0", "launch.processes=0: must be a whole number at least 1 or null"),
    ],
)
def test_what_processes_cannot_do_is_refused_in_a_line(words: str, told: str, kdrun_here: Kdrun) -> None:
    done = kdrun_here(*WORDS, *words.split(), check=False)
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_a_sweep_of_several_processes_a_cell_is_refused(kdrun_here: Kdrun) -> None:
    done = kdrun_here("sweep", *SMALL, "seed=0,1", "launch=ddp", "launch.processes=2", check=False)
    assert done.returncode == 2
    assert "launch=: a sweep runs each cell in one process; type launch=local" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*WORDS, "launch=ddp", "launch.processes=4"], "launch.processes=4: 2 are started already; leave it out"),
        (["evaluate", "run=x"], "torchrun: of kdrun's commands only train runs in 2 processes"),
    ],
)
def test_what_torchrun_cannot_start_is_refused(
    words: list[str], told: str, kdrun_here: Kdrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = kdrun_here(*words, check=False)
    assert done.returncode == 2
    assert told in done.stderr
