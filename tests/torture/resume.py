"""Runs killed or interrupted at any moment, resumed, and compared with the run that nobody disturbed: bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import SMALL, read_json, read_lines
from tests.torture.processes import TEACHER, Forks, finish
from tests.torture.rows import Row

STEPS = 30
ALL = [*SMALL, f"train.max_steps={STEPS}", "train.save_every=3", "train.valid_every=5"]
DROPOUT = ["pair.student=dropout", "train.micro_batch_size=3"]
VARIANTS = [
    ["loss=taid", "train.log_every=2"],
    ["loss=akl", "match_grad_norm=true", "teacher=cached", "train.log_every=1"],
    ["loss=taid", "teacher=cached", *DROPOUT, "train.log_every=1", "evaluate=false"],
    ["loss=akl", "match_grad_norm=true", *DROPOUT, "train.log_every=4"],
]
TURNS = ["loading", "steps", "validation", "checkpoint", "end", "steps"]
KILLS, SIGNALS = 30, 10


def run(folder: Path, budget_s: float) -> list[Row]:
    """Kills and signals, in two processes at a time."""
    end = time.monotonic() + 0.9 * budget_s
    started = Started(folder)
    started.make_pair()
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(started.reference, range(len(VARIANTS))))
        assert codes == [0] * len(VARIANTS), f"references ended with {codes}"
        stopping = [signal.SIGKILL] * KILLS + [signal.SIGINT, signal.SIGTERM] * (SIGNALS // 2)
        turns = sorted(enumerate(stopping), key=lambda job: job[0] % KILLS)  # signals among kills
        found = list(pool.map(lambda job: started.disturb(*job, end=end), turns))
    tried = [one for one in found if one is not None]
    for one in tried:
        if one.fault:
            print(f"resume: {one.name} in {one.phase}: {one.fault}", file=sys.stderr)
    return [
        row(
            "a run killed at any moment and resumed ends bit-equal (weights, optimiser, metrics, texts)",
            [one for one in tried if one.sign == signal.SIGKILL], KILLS,
        ),
        row(
            "SIGINT, SIGTERM: the step ends, exit 130/143, interrupted; resumed bit-equal",
            [one for one in tried if one.sign != signal.SIGKILL], SIGNALS,
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Disturbed:
    """One run that was stopped: where, and what is wrong with it after it has gone on; "" for nothing."""

    name: str
    sign: signal.Signals
    phase: str
    fault: str


def row(promise: str, found: list[Disturbed], wanted: int) -> Row:
    """Kept and tried by phase; fewer than wanted is no kept promise."""
    kept, tried = (Counter(one.phase for one in found if not (good and one.fault)) for good in (True, False))
    figure = ", ".join(f"{phase} {kept[phase]} of {tried[phase]}" for phase in dict.fromkeys(TURNS) if tried[phase])
    missed = wanted - tried.total()
    return Row(promise, wanted, kept.total(), figure + (f"; {missed} not tried, time ran out" if missed else ""))


class Started:
    """Runs of one workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.forks = folder, Forks(folder)

    def make_pair(self) -> None:
        """A teacher, the caches' place, and a student with dropout."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        teacher = self.folder / "outputs" / "teachers" / "tiny-unicode" / "teacher"
        assert self.forks.run("teacher", "train", *TEACHER) == 0
        model = AutoModelForCausalLM.from_pretrained(teacher)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(model.config, name, 0.1)
        model.save_pretrained(self.folder / "dropout")
        AutoTokenizer.from_pretrained(teacher).save_pretrained(self.folder / "dropout")

    def reference(self, variant: int) -> int | None:
        """The run that nobody disturbs."""
        return self.forks.run(f"whole-{variant}", "train", *self.words(variant, f"whole-{variant}"))

    def words(self, variant: int, name: str) -> list[str]:
        return [*ALL, *VARIANTS[variant], "name=run", f"hydra.run.dir=outputs/{name}"]

    def disturb(self, number: int, sign: signal.Signals, *, end: float) -> Disturbed | None:
        """Stop a run in the phase whose turn it is, resume it, compare; None when there is no time left."""
        draw, variant = random.Random(number), number % len(VARIANTS)
        turn = TURNS[(number + number // 12) % len(TURNS)]  # every phase comes to every variant
        for attempt in range(6):  # a run may be over before its moment has come
            name = f"run-{number}-{attempt}"
            directory = self.folder / "outputs" / name
            if time.monotonic() > end:
                return None
            moment = MOMENTS[turn if attempt < 3 else "steps"](directory, draw)
            process = self.forks.start(name, "train", *self.words(variant, name))
            while process.exitcode is None and not moment():
                time.sleep(0.0005)
            if process.exitcode is None:
                os.kill(process.pid, sign)
            code = finish(process)
            if not is_done(directory):
                break
        phase = phase_of(directory)
        fault = check_stopped(directory, sign, code)
        if not fault:
            again = [f"resume=outputs/{name}"] if (directory / "run.json").exists() else self.words(variant, name)
            code = self.forks.run(f"{name}-resumed", "train", *again)
            whole = self.folder / "outputs" / f"whole-{variant}"
            fault = f"resuming ended with {code}" if code != 0 else difference(directory, whole)
        return Disturbed(name, sign, phase, fault)


# -- moments -----------------------------------------------------------------------------------------------------------

Moment = Callable[[], bool]


def later(happened: Moment, delay_s: float) -> Moment:
    """Some time after something has happened."""
    since: list[float] = []

    def now() -> bool:
        if not since and happened():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + delay_s

    return now


def lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def saving(run: Path) -> list[int]:
    """Steps whose checkpoint is being written or removed."""
    folder = run / "checkpoints"
    return [int(path.name.split(".")[1].removeprefix("step-")) for path in folder.glob(".step-*")]


def awaits_validation(run: Path, step: int) -> bool:
    """Whether a step is reported whose validation is not."""
    found = [line for line in lines(run) if line["step"] == step]
    return len(found) == 1


def at_end(run: Path, draw: random.Random) -> Moment:
    sign = run / draw.choice([".student.tmp", "student", "eval"])
    last = run / "summary.json"  # of a run that evaluates nothing
    return later(lambda: sign.exists() or last.exists(), draw.choice([0.0, 0.0, draw.uniform(0, 0.2)]))


def in_checkpoint(run: Path, draw: random.Random) -> Moment:
    least = draw.randrange(STEPS - 2)
    return later(lambda: any(step > least for step in saving(run)), draw.uniform(0, 0.02))


def in_validation(run: Path, draw: random.Random) -> Moment:
    step = draw.choice([20, 20, STEPS])  # steps that every variant reports
    return lambda: awaits_validation(run, step)


def in_loading(run: Path, draw: random.Random) -> Moment:
    return later(run.exists, draw.choice([draw.uniform(0, 0.1), draw.uniform(0, 1)]))


def in_steps(run: Path, draw: random.Random) -> Moment:
    number = draw.randrange(2, STEPS // 4 + 6)
    return later(lambda: len(lines(run)) >= number and not saving(run), draw.uniform(0, 0.01))


MOMENTS: dict[str, Callable[[Path, random.Random], Moment]] = {
    "loading": in_loading, "steps": in_steps, "validation": in_validation, "checkpoint": in_checkpoint, "end": at_end,
}  # fmt: skip


def is_done(run: Path) -> bool:
    return (run / "run.json").exists() and read_json(run / "run.json")["status"] == "done"


def phase_of(run: Path) -> str:
    """Where a run was stopped, by what it has left."""
    reported = lines(run)
    if not reported:
        return "loading"
    if any((run / name).exists() for name in (".student.tmp", "student", "summary.json")):
        return "end"
    if saving(run):
        return "checkpoint"
    last = reported[-1]["step"]
    due = last % 5 == 0 and not any("valid/nll" in line for line in reported if line["step"] == last)
    return "validation" if due else "steps"


# -- comparisons -------------------------------------------------------------------------------------------------------


def check_stopped(run: Path, sign: signal.Signals, code: int | None) -> str:
    """What is wrong with the way in which a run ended."""
    wanted = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[sign]
    if code != wanted:
        return f"ended with {code} after {sign.name}"
    if sign == signal.SIGKILL or not (run / "run.json").exists():
        return ""
    status = read_json(run / "run.json")["status"]
    if status != "interrupted":
        return f"run.json says {status} after {sign.name}"
    trained = any("train/loss" in line for line in lines(run))
    kept = (run / "checkpoints").exists() and list((run / "checkpoints").glob("step-*"))
    return f"no checkpoint after {sign.name}" if trained and not kept else ""


def difference(ours: Path, whole: Path) -> str:
    """What differs between two finished runs, but for clocks and memory; "" for nothing."""
    if not is_done(ours):
        return "run.json does not say done"
    if left := [str(path) for path in (*ours.glob(".*"), *ours.glob("checkpoints/.*"))]:
        return f"left aside: {left}"
    if facts(ours) != facts(whole):
        mine, theirs = facts(ours), facts(whole)
        first = next((n for n, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), "the end")
        return f"metrics differ at line {first}, {len(mine)} against {len(theirs)}"
    names = ["student", f"checkpoints/step-{STEPS}/student", f"checkpoints/step-{STEPS}/optimizer.safetensors",
             "eval/quick/examples.jsonl"]  # fmt: skip
    paths = [path for name in names for path in ([whole / name, *(whole / name).rglob("*")]) if path.is_file()]
    for path in paths:
        name = path.relative_to(whole)
        if not (ours / name).exists() or (ours / name).read_bytes() != path.read_bytes():
            return f"{name} differs"
    return ""


def facts(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, then the summary."""
    timed = ("_s", "peak_memory_gib", "teacher_share")
    found = [*read_lines(run / "metrics.jsonl"), read_json(run / "summary.json")]
    return [{key: value for key, value in line.items() if not key.endswith(timed)} for line in found]
