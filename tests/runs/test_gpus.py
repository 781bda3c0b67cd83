"""Claims of GPUs by processes, with pretended devices: no two processes have one, and a dead one's is free again."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdrun.runs.gpus import unseen_gpu, visible_gpus

CLAIM = (
    "import os, sys\nfrom kdrun.runs.gpus import claim_gpu, claimed_gpu\n"
    "gpu = claim_gpu(waiting=lambda line: print(line, flush=True))\n"
    "assert claim_gpu(waiting=print) == claimed_gpu() == gpu\n"
    "print(gpu, os.environ.get('CUDA_VISIBLE_DEVICES'), 'torch' in sys.modules, flush=True)\nsys.stdin.read()\n"
)


@contextmanager
def claiming(folder: Path, devices: str) -> Iterator[subprocess.Popen]:
    """A process that claims a GPU and keeps it until its input ends."""
    environment = {**os.environ, "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": devices}
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.kill()


def said(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_every_process_has_a_gpu_of_its_own_and_the_rest_wait(tmp_path: Path) -> None:
    with claiming(tmp_path, "0,1") as first, claiming(tmp_path, "0,1") as second:
        told = sorted([said(first), said(second)])
        assert told == ["0 0 False", "1 1 False"], "CUDA is shown the claimed one only, before torch is there"
        with claiming(tmp_path, "0,1") as third:
            assert said(third) == "all GPUs are taken (0, 1): waiting for one"
            first.kill()
            freed = said(third)
            assert freed in told, "the killed process's"


def test_claims_are_made_among_the_devices_that_are_visible(tmp_path: Path) -> None:
    with claiming(tmp_path, "3") as one, claiming(tmp_path, "GPU-a, GPU-b") as other:
        assert said(one) == "3 3 False"
        assert said(other) == "GPU-a GPU-a False"


def test_without_gpus_nothing_is_claimed(tmp_path: Path) -> None:
    with claiming(tmp_path, "") as process:
        assert said(process) == "None  False"


def test_the_drivers_tool_counts_gpus_where_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == []


def test_a_gpu_that_torch_does_not_see_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert unseen_gpu("train.device", lambda: False, devices=tmp_path) is None
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert unseen_gpu("train.device", lambda: True, devices=tmp_path) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    line = unseen_gpu("train.device", lambda: False, devices=tmp_path) or ""
    assert "nvidia0" in line and "nvidiactl" not in line
    assert "CUDA_VISIBLE_DEVICES=''" in line and "train.device=cpu" in line
