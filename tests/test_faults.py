"""What goes wrong around a run (disk, data, device, teacher): a clear end, a record that says why, nothing lost."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import SMALL, Kdrun, read_json

SHORT = [*SMALL, "train.max_steps=4", "train.save_every=2", "train.valid_every=null", "evaluate=false"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # this process has a log open there


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines(text: str) -> list[str]:
    """What a command says of its failure."""
    return [line for line in text.splitlines() if line.startswith("kdrun: ")]


@pytest.mark.parametrize("size", ["172k", "64k", "12k"])
def test_a_full_disk_is_one_line_and_a_failed_record_and_the_run_goes_on_when_there_is_room(
    size: str, disk: Path, kdrun_here: Kdrun
) -> None:
    remount(disk, f"size={size}")
    run = disk / "run"
    done = kdrun_here("train", *SHORT, f"hydra.run.dir={run}", check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = lines(done.stderr)
    assert "No space left on device" in line and "make room" in line
    record = read_json(run / "run.json")
    assert record["status"] == "failed" and "No space left on device" in record["error"]
    assert not list(run.rglob("*.tmp")), "nothing half written is left"
    if size == "172k":
        before = hashes(run / "checkpoints")
        assert before, "a checkpoint was whole before the disk was full"
        remount(disk, "size=10m")
        kdrun_here("train", f"resume={run}")
        assert read_json(run / "run.json")["status"] == "done"


def test_an_evaluation_on_a_full_disk_leaves_the_runs_results_as_they_were(disk: Path, kdrun_here: Kdrun) -> None:
    run = disk / "run"
    kdrun_here("train", *SHORT, f"hydra.run.dir={run}")
    before = hashes(run)
    used = sum(path.stat().st_blocks * 512 for path in run.rglob("*"))
    remount(disk, f"size={used // 1024 + 8}k")
    words = [word for word in SMALL if word.startswith("eval.")]
    done = kdrun_here("evaluate", f"run={run}", *words, "track.mode=disabled", check=False)
    assert done.returncode == 2 and "No space left" in lines(done.stderr)[0]
    after = hashes(run)
    assert {name: after[name] for name in before} == before


def test_files_that_may_grow_no_further_end_the_run_alike(tmp_path: Path, kdrun_here: Kdrun) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        done = kdrun_here("train", *SHORT, f"hydra.run.dir={tmp_path}/run", check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2, done.stderr
    assert "File too large" in lines(done.stderr)[0] and "ulimit -f" in done.stderr
    assert read_json(tmp_path / "run/run.json")["status"] == "failed"


def test_a_place_that_is_read_only_is_refused_in_one_line(disk: Path, kdrun_here: Kdrun) -> None:
    remount(disk, "ro")
    done = kdrun_here("train", *SHORT, f"hydra.run.dir={disk}/run", check=False)
    remount(disk, "rw")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Read-only file system" in lines(done.stderr)[0] and str(disk) in lines(done.stderr)[0]


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_one_line_and_recorded(device: str, tmp_path: Path, kdrun_here: Kdrun) -> None:
    import torch

    if torch.cuda.device_count() > 7:
        pytest.skip("it is there")
    done = kdrun_here("train", *SHORT, f"train.device={device}", f"hydra.run.dir={tmp_path}/run", check=False)
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    assert done.returncode == 2
    assert lines(done.stderr) == [
        f"kdrun: train.device={device}: torch sees {torch.cuda.device_count()} GPUs here; type train.device=auto or "
        "train.device=cpu"
    ]
    record = read_json(tmp_path / "run/run.json")
    assert record["status"] == "failed" and f"train.device={device}" in record["error"]


def test_a_run_whose_data_has_changed_does_not_go_on_from_its_checkpoint(tmp_path: Path, kdrun_here: Kdrun) -> None:
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    rows = [json.dumps({"instruction": f"Say {i}.", "output": f"It is {i}."}) + "\n" for i in range(200)]
    data.write_text("".join(rows))
    words = [*SHORT, "role=teacher", "loss=sft", "data=jsonl", f"data.path={data}", "data.encoded=null"]
    kdrun_here("train", *words, "data.max_rows=null", f"hydra.run.dir={run}")
    before = hashes(run / "checkpoints")
    with data.open("a") as file:
        file.write(rows[0].replace("Say", "Shout"))
    done = kdrun_here("train", f"resume={run}", "train.max_steps=6", check=False)
    assert done.returncode == 2, done.stderr
    (line,) = lines(done.stderr)
    assert "data.sha256 was" in line and "rows" in line and "start a new run" in line
    assert read_json(run / "run.json")["status"] == "failed"
    assert hashes(run / "checkpoints") == before and (run / "teacher" / "model.safetensors").exists()
    data.write_text("".join(rows))
    kdrun_here("train", f"resume={run}", "train.max_steps=6")


def test_a_teacher_whose_logits_are_no_numbers_is_named_before_the_first_step(
    tmp_path: Path, kdrun_here: Kdrun, workspace: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(workspace / "outputs/teachers/tiny-unicode/teacher", broken)
    weights = load_file(broken / "model.safetensors")
    weights["transformer.ln_f.weight"][:] = 3e38  # finite, as loading asks; what comes of them is not
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for source in ("live", "cached"):
        done = kdrun_here(
            "train", *SHORT, f"teacher={source}", f"pair.teacher={broken}", f"hydra.run.dir={tmp_path}/{source}",
            check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "teacher: its logits are NaN or infinite" in lines(done.stderr)[0]
        assert read_json(tmp_path / source / "run.json")["status"] == "failed"
        assert not (tmp_path / source / "student").exists()


def test_a_file_system_error_that_is_not_the_disks_doing_keeps_its_traceback(kdrun_here: Kdrun) -> None:
    from kdrun.launch import answered

    with pytest.raises(FileNotFoundError), answered():
        raise FileNotFoundError(2, os.strerror(2), "gone")
