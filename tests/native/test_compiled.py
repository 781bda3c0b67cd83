"""Compiled once, loaded by every process; without a compiler the same numbers, and one line that says so."""

import os
import subprocess
from pathlib import Path

import pytest

from kdrun.native import compiled
from tests.forked import Forked

PROGRAM = """
import logging
logging.basicConfig(format="%(message)s")
import torch
from kdrun.losses import make_loss
torch.manual_seed(0)
for _ in range(3):
    print(make_loss("akl")(torch.randn(2, 400), torch.randn(2, 400)).tolist())
"""


def run(cache: Path, **environment: str) -> subprocess.CompletedProcess:
    done = start(cache, **environment).completed()
    assert done.returncode == 0, done.stderr
    return done


def start(cache: Path, **environment: str) -> Forked:
    environment = {**os.environ, "KDRUN_NATIVE_CACHE": str(cache), **environment}
    return Forked(PROGRAM, cwd=Path.cwd(), environment=environment)


def numbers(done: subprocess.CompletedProcess) -> list[float]:
    return [x for line in done.stdout.splitlines() for x in eval(line)]


@pytest.fixture
def needs_compiler() -> None:
    if compiled("head_border") is None:
        pytest.skip("no C compiler")


def test_without_a_compiler_the_numbers_are_the_same_and_one_line_says_so(tmp_path: Path) -> None:
    without = run(tmp_path / "none", PATH=str(tmp_path), CC="")
    assert without.stderr.count("no C compiler") == 1 and "slower" in without.stderr
    assert not (tmp_path / "none").exists()
    assert numbers(without) == pytest.approx(numbers(run(tmp_path / "some")), rel=1e-6)


@pytest.mark.usefixtures("needs_compiler")
def test_it_is_compiled_once_and_says_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    (made,) = tmp_path.iterdir()
    before = made.stat().st_mtime_ns
    assert numbers(run(tmp_path)) == numbers(first)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [before]
    assert first.stderr == ""


@pytest.mark.usefixtures("needs_compiler")
def test_two_processes_that_compile_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    both = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert outputs[0] == outputs[1] and outputs[0][1] == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_a_compiler_that_fails_and_a_cache_that_cannot_be_written_are_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = run(tmp_path / "cache", CC=str(broken))
    assert done.stderr.count("cannot be compiled") == 1 == len(done.stderr.splitlines())
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "cache")
    assert "Traceback" not in done.stderr and len(numbers(done)) == 6


@pytest.mark.usefixtures("needs_compiler")
def test_a_damaged_library_is_not_loaded(tmp_path: Path) -> None:
    first = run(tmp_path)
    (made,) = tmp_path.iterdir()
    made.write_bytes(made.read_bytes()[:100])
    assert numbers(run(tmp_path)) == pytest.approx(numbers(first), rel=1e-6)
