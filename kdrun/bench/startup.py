"""kdrun bench startup: how long the first answer takes, each command in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdrun.bench.contest import Contestant, Plan, Work

KDRUN = ("-m", "kdrun")
SMALL = ("data.max_rows=512", "train.valid_rows=32", "track.mode=disabled", "evaluate=false")
POLL_S = 0.005
Folder = tempfile.TemporaryDirectory[str]
TRL_HELP = "import sys; sys.argv[:] = ['trl', '--help']; from trl.cli import main; main()"


@dataclass(frozen=True)
class StartupCase:
    """No size: the commands are what they are."""

    device: str = "cpu"

    @property
    def label(self) -> str:
        return "fresh processes"

    @property
    def sizes(self) -> dict[str, float]:
        return {}

    def build(self) -> Folder:
        """A folder of its own to run in."""
        return tempfile.TemporaryDirectory()

    def contestants(self) -> list[Contestant]:
        """kdrun's commands, the interpreter alone, and the imports that peers begin with."""

        gkd, liger = "from trl.experimental.gkd import GKDTrainer", "import liger_kernel.chunked_loss"
        return [
            Contestant("python -c pass", command("-c", "pass"), "floor"),
            Contestant("kdrun --help", command(*KDRUN, "--help"), "ours"),
            Contestant("kdrun train mu=2 (refused)", command(*KDRUN, "train", "mu=2", code=2), "ours"),
            Contestant("kdrun show", command(*KDRUN, "show"), "ours"),
            Contestant("import kdrun.losses", command("-c", "import kdrun.losses"), "ours"),
            Contestant("kdrun train, to its first step", start_first_step, "ours"),
            Contestant("import torch", command("-c", "import torch"), "floor"),
            Contestant("trl --help", command("-c", TRL_HELP), "peer", "trl"),
            Contestant("import trl GKDTrainer", command("-c", gkd), "peer", "trl"),
            Contestant(liger, command("-c", liger), "peer", "liger_kernel"),
        ]


def plan() -> Plan:
    """All commands; ratios are to the bare interpreter."""
    return Plan([StartupCase()], "python -c pass", [], memory_means="not measured")


class Command:
    """One command line of this interpreter, in a fresh process."""

    def __init__(self, folder: str, words: Sequence[str], *, code: int = 0, run: Path | None = None) -> None:
        """
        Args:
            code: the exit code that it should end with.
            run: a run directory that it makes: removed before, and the process is killed when it holds a first step.
        """
        self.folder, self.words, self.code, self.run = folder, [sys.executable, *words], code, run

    def __call__(self) -> None:
        """Run it. Raises RuntimeError, with its last words, when it ends with another exit code than expected."""
        if self.run is not None:
            shutil.rmtree(self.run, ignore_errors=True)
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self.words, cwd=self.folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            while self.run is not None and process.poll() is None and not _has_stepped(self.run / "metrics.jsonl"):
                time.sleep(POLL_S)
            if self.run is not None and process.returncode is None:
                process.kill()
                process.wait()
            elif process.wait() != self.code:
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"exit code {process.returncode}: {' '.join(last)}")

    def close(self) -> None:
        """No peak: of a process that it started, Linux reports at least what this one held then, torch included."""

    def figures(self, seconds: Sequence[float]) -> dict[str, float]:
        """None."""
        return {}


def command(*words: str, code: int = 0) -> Callable[[Folder], Work]:
    """What starts this interpreter with these words; it ends by itself with this exit code."""
    return partial(start, words, code)


def start(words: Sequence[str], code: int, folder: Folder) -> Work:
    """A command that ends by itself."""
    return Command(folder.name, words, code=code)


def start_first_step(folder: Folder) -> Work:
    """`kdrun train` on the tiny pair, its teacher there, until metrics.jsonl has the first optimiser step.

    512 rows, and a validation on 32 before it. The teacher, of one step, is made here.
    """
    words = ("role=teacher", "loss=sft", "train=tiny_teacher", "train.max_steps=1", "train.save_every=null")
    target = "hydra.run.dir=outputs/teachers/tiny-unicode"
    Command(folder.name, (*KDRUN, "train", *words, *SMALL, target))()
    run = Path(folder.name) / "outputs" / "first-step"
    return Command(folder.name, (*KDRUN, "train", "loss=fkl", *SMALL, f"hydra.run.dir={run}"), run=run)


def _environment() -> dict[str, str]:
    """This one, without what would send a run elsewhere; kdrun is imported from where this process has it."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    kept = {name: value for name, value in os.environ.items() if name != "KDRUN_OUTPUTS"}
    return {**kept, "WANDB_MODE": "disabled", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": path}


def _has_stepped(metrics: Path) -> bool:
    if not metrics.exists():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    return any(json.loads(line).get("step", 0) >= 1 for line in lines if line.endswith("\n"))
