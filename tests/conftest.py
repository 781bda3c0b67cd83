"""Shared: the real command in a subprocess, and one tiny teacher made by it for the whole test session."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import KDRUN, Forked

# One thread in every process: bits depend on how many there are, and tiny tensors are slow on several (see one_thread).
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A pair of some thousand parameters and a few steps: every test of a command uses these words.
SMALL = [
    "pair.vocab_size=300", "pair.teacher_layers=1", "pair.teacher_width=16", "pair.teacher_heads=2",
    "pair.student_layers=1", "pair.student_width=8", "pair.student_heads=2",
    "data.max_rows=64", "train.batch_size=8", "train.valid_rows=8", "train.warmup_steps=0", "track.mode=disabled",
    "eval.num_examples=6", "eval.max_new_tokens=4", "eval.bertscore=false",
]  # fmt: skip

Kdrun = Callable[..., subprocess.CompletedProcess]


def run_kdrun(
    *words: str, cwd: Path, check: bool = True, env: dict | None = None, fresh: bool = False
) -> subprocess.CompletedProcess:
    """`kdrun words` in a process of its own; fresh: in an interpreter of its own too (some 5 s more)."""
    # A test that used W&B in this process left the address of its writer here: a child would write through that one.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment = {**inherited, **(env or {})}
    if fresh:
        done = subprocess.run(
            [sys.executable, "-m", "kdrun", *words], cwd=cwd, capture_output=True, text=True, env=environment,
            check=False,
        )  # fmt: skip
    else:
        done = Forked(KDRUN, *words, cwd=cwd, environment=environment).completed()
    if check:
        assert done.returncode == 0, f"kdrun {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny tensors on two OpenMP threads of a busy machine are 30 times slower than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def what_is_imported_is_not_searched_for_garbage() -> None:
    """Half a million objects of torch and transformers, 0.4 s a search and a fifth of composing a config."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def absl_leaves_the_capture_open() -> None:
    """rouge_score brings absl, whose log handler closes the stream that it found at its import when Hydra configures
    logging anew: pytest's own, where a test of another stream is running."""
    from absl import logging

    logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a teacher was trained; tests work in copies."""
    folder = tmp_path_factory.mktemp("taught")
    run_kdrun(
        "train", "role=teacher", "loss=sft", "train=tiny_teacher", "name=teacher", "train.save_every=null",
        *SMALL, "train.max_steps=4", "evaluate=false", "hydra.run.dir=outputs/teachers/tiny-unicode", cwd=folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def workspace(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished teacher in outputs/teachers/tiny-unicode, a file of tests' own: no run of
    another's is in the way, whichever ran before in this process."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(taught / "outputs" / "teachers", folder / "outputs" / "teachers")
    return folder


@pytest.fixture
def kdrun(workspace: Path) -> Kdrun:
    """Run a command in the workspace."""
    return lambda *words, **options: run_kdrun(*words, cwd=workspace, **options)


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str]) -> Kdrun:
    """Run a command in this process, for speed: the same words, the same code."""

    def run(command: str, *words: str, check: bool = True, conf: Path | None = None) -> subprocess.CompletedProcess:
        from kdrun.cli import CONF
        from kdrun.launch import launch

        if command == "sweep":
            command, words = "train", ("--multirun", *words)
        capfd.readouterr()
        code = 0
        try:
            launch(command, words, conf or CONF)
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        assert code == 0 or not check, err
        return subprocess.CompletedProcess(words, code, out, err)

    return run


@pytest.fixture
def kdrun_here(workspace: Path, run_here: Kdrun, monkeypatch: pytest.MonkeyPatch) -> Kdrun:
    """Run a command in this process and in the workspace."""
    monkeypatch.chdir(workspace)
    return run_here


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
