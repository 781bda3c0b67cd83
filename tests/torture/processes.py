"""`kdrun` in processes that start cheaply: forks of one that has only imported what a run imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from tests.conftest import SMALL

PRELOADED = [
    "kdrun.launch", "kdrun.commands.train", "kdrun.training.loop", "kdrun.training.optimizer", "accelerate",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2", "kdrun.generation.generate", "rouge_score.rouge_scorer",
    "kdrun.commands.cache", "kdrun.commands.compare",
]  # fmt: skip
TEACHER = ["role=teacher", "loss=sft", "train=tiny_teacher", *SMALL, "train.max_steps=4", "evaluate=false",
           "name=teacher", "train.save_every=null", "hydra.run.dir=outputs/teachers/tiny-unicode"]  # fmt: skip


class Forks:
    """Processes of one folder, with the folder's own conf/ where it has one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def start(self, name: str, *words: str, gate: Any = None) -> Any:
        """A process for `kdrun words`, begun when as many wait at the gate as it wants; what it says goes to
        NAME.txt."""
        process = self.context.Process(target=enter, args=(str(self.folder), f"{name}.txt", words, gate))
        process.start()
        return process

    def run(self, name: str, *words: str) -> int | None:
        """The exit code of `kdrun words`."""
        return finish(self.start(name, *words))

    def start_at_once(self, commands: dict[str, list[str]]) -> list[Any]:
        """Processes of these names for `kdrun words` each, which begin in the same instant."""
        self.gate = self.context.Barrier(len(commands))  # kept: the system forgets it when it is collected here
        return [self.start(name, *words, gate=self.gate) for name, words in commands.items()]

    def said(self, name: str) -> str:
        """What the processes of a name have said so far."""
        path = self.folder / f"{name}.txt"
        return path.read_text() if path.exists() else ""


def finish(process: Any) -> int | None:
    """A process's exit code; None when it had to be ended."""
    process.join(300)
    if process.exitcode is None:
        process.kill()
        return None
    return int(process.exitcode)


def enter(folder: str, output: str, words: tuple[str, ...], gate: Any) -> None:
    """In the new process: the command itself."""
    from kdrun import cli

    os.chdir(folder)
    if os.path.isdir("conf"):
        cli.CONF = Path("conf").absolute()
    with open(output, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["kdrun", *words]
    if gate is not None:
        gate.wait()
    cli.main()
