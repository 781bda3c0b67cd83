"""A run that was killed, interrupted or damaged goes on as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_train import weights
from tests.conftest import SMALL, Kdrun, read_json, read_lines
from tests.forked import Forked


def test_a_run_stopped_half_way_and_resumed_ends_like_the_uninterrupted_one(
    akl: Path, kdrun_here: Kdrun, workspace: Path
) -> None:
    """Killed after its checkpoint at step 3; the resumed run has the same weights, metrics and texts."""
    words = ["train", "loss=akl", "mu=0.5", *SMALL, "train.max_steps=6", "train.log_every=2", "train.valid_every=3",
             "train.save_every=3", "name=akl", "hydra.run.dir=outputs/killed"]  # fmt: skip
    code = (
        "import os\nfrom kdrun.training import loop\nstep = loop.Loop.step\n"
        "def dying(self, number, **k):\n"
        "    if number == 4: os.kill(os.getpid(), 9)\n    return step(self, number, **k)\n"
        "loop.Loop.step = dying\nfrom kdrun.cli import main\nmain()\n"
    )
    done = Forked(code, *words, cwd=workspace).completed()
    assert done.returncode == -signal.SIGKILL
    folder = workspace / "outputs" / "killed"
    assert read_json(folder / "run.json")["status"] == "running"
    kdrun_here("train", "resume=outputs/killed")
    record = read_json(folder / "run.json")
    assert record["status"] == "done"
    assert record["resumed_from_step"] == 3
    assert len(record["attempts"]) == 1
    assert weights(folder) == weights(akl)

    assert facts(folder) == facts(akl)
    texts = "eval/quick/examples.jsonl"
    assert (folder / texts).read_bytes() == (akl / texts).read_bytes()


def facts(run: Path) -> list[dict]:
    """The lines of metrics.jsonl and the summary, without what the clock and the machine say."""
    timed = ("_s", "peak_memory_gib", "teacher_share")
    lines = [*read_lines(run / "metrics.jsonl"), read_json(run / "summary.json")]
    return [{key: value for key, value in line.items() if not key.endswith(timed)} for line in lines]


def copied(run: Path, name: str, **record: object) -> Path:
    """A run directory again under another name, its record changed."""
    folder = Path(shutil.copytree(run, run.with_name(name)))
    (folder / "run.json").write_text(json.dumps(read_json(folder / "run.json") | record))
    return folder


def test_a_torn_checkpoint_is_named_and_the_one_before_it_taken(akl: Path, kdrun_here: Kdrun) -> None:
    """Step 3 stands between two reports (train.log_every=2), and has its validation still to come."""
    folder = copied(akl, "torn", status="interrupted")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(
        "".join(line for line in lines if not (line.startswith('{"step": 3,') and "valid/" in line))
    )
    os.truncate(folder / "checkpoints" / "step-6" / "optimizer.safetensors", 99)
    (folder / ".student.tmp").mkdir()
    done = kdrun_here("train", "resume=outputs/torn")
    assert "checkpoints/step-6 is not used: optimizer.safetensors is missing or has another size" in done.stderr
    assert "resumed after step 3" in done.stderr
    assert weights(folder) == weights(akl)
    assert facts(folder) == facts(akl)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-3", "step-6", "unused-step-6"]
    assert not (folder / ".student.tmp").exists()


def test_a_run_killed_at_its_end_has_the_same_summary_when_it_is_resumed(akl: Path, kdrun_here: Kdrun) -> None:
    folder = copied(akl, "ended", status="running")
    shutil.rmtree(folder / "eval")
    (folder / "summary.json").unlink()
    kdrun_here("train", "resume=outputs/ended")
    assert facts(folder) == facts(akl)
    assert read_json(folder / "run.json")["resumed_from_step"] == 6


def test_checkpoints_of_another_run_are_not_taken(akl: Path, kdrun_here: Kdrun) -> None:
    folder = copied(akl, "other", status="interrupted", run_id="another")
    done = kdrun_here("train", "resume=outputs/other")
    assert done.stderr.count("is not used: it is of another run; kept as unused-step-") == 2
    assert "resumed_from_step" not in read_json(folder / "run.json")
    assert weights(folder) == weights(akl)
    assert facts(folder) == facts(akl)


def test_resuming_with_another_config_is_refused_naming_the_key(akl: Path, kdrun_here: Kdrun) -> None:
    done = kdrun_here("train", "resume=outputs/akl", check=False)
    assert done.returncode == 2
    assert "is done" in done.stderr
    changed = akl.parent / "changed"
    changed.mkdir()
    record = read_json(akl / "run.json") | {"status": "interrupted"}
    (changed / "run.json").write_text(json.dumps(record))
    (changed / "config.yaml").write_text((akl / "config.yaml").read_text().replace("lr: 0.003", "lr: 0.001"))
    done = kdrun_here("train", "resume=outputs/changed", check=False)
    assert done.returncode == 2
    assert "train.lr=0.001, now train.lr=0.003" in done.stderr


def test_training_further_from_a_done_run_is_asked_for_by_name(akl: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    kdrun_here(
        "train",
        "loss=sft",
        *SMALL,
        "train.max_steps=2",
        "train.save_every=2",
        "evaluate=false",
        "hydra.run.dir=outputs/more",
    )
    kdrun_here("train", "resume=outputs/more", "train.max_steps=4")
    folder = workspace / "outputs" / "more"
    assert read_json(folder / "summary.json")["steps"] == 4
    assert read_json(folder / "run.json")["resumed_from_step"] == 2


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint_to_go_on_from(
    sent: int, code: int, workspace: Path, kdrun_here: Kdrun
) -> None:
    """With train.save_every=null."""
    folder = f"outputs/signal-{code}"
    words = ["train", "loss=sft", *SMALL, "train.max_steps=100000", "evaluate=false", f"hydra.run.dir={folder}"]
    process = subprocess.Popen([sys.executable, "-m", "kdrun", *words], cwd=workspace, stderr=subprocess.PIPE)
    metrics = workspace / folder / "metrics.jsonl"
    for _ in range(600):
        if process.poll() is not None or (metrics.exists() and "train/loss" in metrics.read_text()):
            break
        time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert read_json(metrics.parent / "run.json")["status"] == "interrupted"
    step = read_lines(metrics)[-1]["step"]
    assert f"stopped; kdrun train resume={folder} goes on after step {step}\n" in err.decode()
    assert [path.name for path in (metrics.parent / "checkpoints").iterdir()] == [f"step-{step}"]
    kdrun_here("train", f"resume={folder}", f"train.max_steps={step + 2}")
    assert read_json(metrics.parent / "run.json")["resumed_from_step"] == step
    steps = [line["step"] for line in read_lines(metrics) if "train/loss" in line]
    assert steps == list(range(1, step + 3))


def test_the_run_in_wandb_goes_on_even_when_an_attempt_between_never_reached_it(akl: Path) -> None:
    from kdrun.cli import CONF
    from kdrun.commands.train import Training
    from kdrun.compose import compose_cells
    from kdrun.runs.directory import RunDirectory
    from kdrun.words import read_flags

    first = read_json(akl / "run.json") | {"wandb_id": "one"}
    folder = copied(akl, "tracked-twice", attempts=[first, {"run_id": first["run_id"], "error": "killed"}])
    run = RunDirectory.open(folder, key="resume")
    config = compose_cells("train", [*first["overrides"], f"resume={folder}"], read_flags([]), CONF)[0].config
    assert Training(config, run, group=None)._earlier_tracker_id() == "one"
    shutil.rmtree(folder / "checkpoints")
    assert Training(config, run, group=None)._earlier_tracker_id() is None, "the steps begin anew, and so does it"
