"""kdrun bench cache: training from a warm teacher cache against a live teacher, and a sweep that shares one cache.

The pair has the proportions of GPT-2 XL and GPT-2: their widths, and a common share of their layers and vocabulary, so
that body and head cost what they cost there in relation to each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.bench.contest import Contestant, Kind, Plan, Target, Work
from kdrun.bench.pair import Pair, PairInputs
from kdrun.bench.step import PairCase

if TYPE_CHECKING:
    from kdrun.teachers.cached import CachedTeacher
    from kdrun.teachers.live import LiveTeacher

LIVE, WARM, BUILD = "an epoch, live teacher", "an epoch, warm cache", "the cache, made once"


@dataclass(frozen=True)
class CacheInputs:
    """Rows, one teacher for all, and its cache in a temporary folder."""

    trained: PairInputs
    live: LiveTeacher
    cached: CachedTeacher
    folder: tempfile.TemporaryDirectory[str]

    def epoch(self, teacher: Any, mu: float) -> None:
        """One run of one epoch from a fresh student with loss=akl."""
        from kdrun.losses import make_loss

        num_steps = len(self.trained.rows) // self.trained.pair.batch_size
        loop = self.trained.loop(make_loss("akl", mu=mu), teacher, num_steps=num_steps)
        loop.run(start_step=0, on_step=lambda *_: None)


@dataclass(frozen=True)
class CacheCase(PairCase):
    """mus: the values of the sweep."""

    mus: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"{self.pair.label}, {len(self.pair.examples)} rows"

    @property
    def sizes(self) -> dict[str, float]:
        return {**self.pair.sizes, "rows": len(self.pair.examples), "runs": len(self.mus)}

    def build(self) -> CacheInputs:
        """The teacher, and its cache."""
        from kdrun.teachers.live import LiveTeacher

        trained = self.pair.build()
        live = LiveTeacher(trained.teacher().to(self.device), rows=None)
        folder = tempfile.TemporaryDirectory()
        return CacheInputs(trained, live, make_cache(trained, live, Path(folder.name)), folder)

    def contestants(self) -> list[Contestant]:
        """An epoch and a sweep, each from the cache and live."""
        live, shared = sweep_names(self.mus)
        works: dict[str, tuple[Callable[[CacheInputs], Work], Kind]] = {
            LIVE: (partial(run_epochs, "live", self.mus[:1]), "textbook"),
            WARM: (partial(run_epochs, "cached", self.mus[:1]), "ours"),
            BUILD: (partial(run_sweep, ()), "ours"),
            live: (partial(run_epochs, "live", self.mus), "textbook"),
            shared: (partial(run_sweep, self.mus), "ours"),
        }
        return [Contestant(name, start, kind, weighed=False) for name, (start, kind) in works.items()]


def plan(*, pair: Pair, mus: Sequence[float]) -> Plan:
    """One case; memory is not measured, as the teacher is in memory for all."""
    live, shared = sweep_names(mus)
    targets = [Target(WARM, LIVE, 0.5), Target(shared, live, 0.5)]
    return Plan([CacheCase(pair, tuple(mus))], LIVE, targets, memory_means="not measured")


def sweep_names(mus: Sequence[float]) -> tuple[str, str]:
    """(separate live runs, a sweep that makes one cache and reads it)."""
    return f"{len(mus)} values of mu, live runs", f"{len(mus)} values of mu, one cache made and read"


def run_epochs(source: str, mus: Sequence[float], inputs: CacheInputs) -> Work:
    """Runs of one epoch each, one a value of mu; student, optimiser and loop made anew for each."""
    teacher = inputs.cached if source == "cached" else inputs.live

    def work() -> None:
        for mu in mus:
            inputs.epoch(teacher, mu)

    return work


def run_sweep(mus: Sequence[float], inputs: CacheInputs) -> Work:
    """The cache made in an empty folder (one pass of the teacher, written, checked, opened), then a run a value."""

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cached = make_cache(inputs.trained, inputs.live, Path(folder))
            for mu in mus:
                inputs.epoch(cached, mu)

    return work


def make_cache(trained: PairInputs, live: LiveTeacher, folder: Path) -> CachedTeacher:
    """The exact cache of all rows, as `teacher=cached` makes it, opened with its checksums looked at."""
    from kdrun.teachers.building import build, hidden_record
    from kdrun.teachers.cached import CachedTeacher, dtype_name, read_head, save_head
    from kdrun.teachers.store import Shards

    weight = live.head.weight_VD
    build(
        folder / "train",
        trained.rows,
        hidden_record(live.hidden, width=weight.shape[1], dtype=weight.dtype),
        identity={"dtype": dtype_name(weight.dtype)},
        notes={"split": "train"},
        head=save_head(live.head, folder),
        pad_id=trained.tokenizer.pad_token_id,
        device=trained.pair.device,
        progress=lambda *_, **__: nullcontext(lambda _: None),
    )
    return CachedTeacher(Shards(folder / "train"), read_head(folder, device=trained.pair.device))
