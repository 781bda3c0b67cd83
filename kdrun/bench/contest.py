"""What is compared: a case (one task, its inputs) and its contestants, timed in alternation, each weighed apart.

To add a contestant, write one function `inputs -> work` and name it in its case's `contestants`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kdrun.bench.memory import peak_in_own_process
from kdrun.bench.timing import Timing, alternate, ratio

Work = Callable[[], object]
Kind = Literal["floor", "ours", "textbook", "peer"]


@dataclass(frozen=True)
class Contestant:
    """`start(inputs)` prepares and returns the work: a function that does the task once, always the same."""

    name: str
    start: Callable[[Any], Work]
    kind: Kind
    package: str | None = None  # what must be importable for it
    device: str | None = None  # the only type of device that it runs on


class Case(Protocol):
    """One task at one size, of plain values only: it is pickled for the process that weighs a contestant."""

    @property
    def label(self) -> str:
        """What the table says above the rows."""
        ...

    @property
    def sizes(self) -> dict[str, float]:
        """Sizes by name, for the JSON and for the picture's axis."""
        ...

    @property
    def device(self) -> str:
        """cpu or cuda[:N]."""
        ...

    def build(self) -> Any:
        """The inputs that all contestants share, from a fixed seed."""
        ...

    def contestants(self) -> list[Contestant]:
        """Who competes, absent peers included."""
        ...


@dataclass(frozen=True)
class Entry:
    """What one contestant of one case measured. A row without a timing says in `note` why."""

    name: str
    kind: Kind
    timing: Timing | None = None
    peak_bytes: int | None = None
    note: str = ""
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All entries of a case."""

    case: Case
    entries: list[Entry]

    def entry(self, name: str) -> Entry | None:
        """The entry of this name, when it was timed."""
        return next((entry for entry in self.entries if entry.name == name and entry.timing is not None), None)


@dataclass(frozen=True)
class Target:
    """`contestant` takes at most `limit` times what `against` takes (or, at_least, at least that).

    measure: time (median over rounds of the ratio within a round) or memory (peaks).
    against: a contestant of the same case, or for flatness in size "NAME @ label" of another case.
    """

    contestant: str
    against: str
    limit: float
    measure: Literal["time", "memory"] = "time"
    at_least: bool = False


@dataclass(frozen=True)
class Plan:
    """What a benchmark does: cases of its table, further cases of its picture, the contestant that ratios are to."""

    cases: Sequence[Case]
    curve: Sequence[Case]
    reference: str
    targets: Sequence[Target]
    axis: str | None  # the size on the picture's horizontal axis, with its unit; None: bars
    memory_means: str = "above the inputs"  # what the peak is measured from
    facts: dict[str, Any] = field(default_factory=dict)


def is_installed(package: str) -> bool:
    """Whether a package could be imported; nothing is imported."""
    return importlib.util.find_spec(package) is not None


def hold(
    case: Case, *, repetitions: int, memory: bool, threads: int | None, report: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Time every contestant of a case in alternation, then weigh each in a process of its own.

    A peer that fails is an entry with its error; a failure of ours is raised.
    """
    inputs = case.build()
    works: dict[str, Any] = {}
    notes: dict[str, str] = {}
    here = case.device.partition(":")[0]
    contestants = [c for c in case.contestants() if c.device in (None, here)]
    for contestant in contestants:
        if contestant.package is not None and not is_installed(contestant.package):
            notes[contestant.name] = f"{contestant.package} is not installed"
            continue
        report(f"{case.label}: {contestant.name}, first call")
        try:
            work = contestant.start(inputs)
            works[contestant.name] = (work, alternate({"": work}, repetitions=0, wait=_wait(here))[""].first_s)
        except Exception as error:
            if contestant.kind != "peer":
                raise
            notes[contestant.name] = f"failed: {_one_line(error)}"
    timed = {name: work for name, (work, _) in works.items()}
    report(f"{case.label}: {repetitions} rounds")
    timings = alternate(timed, repetitions=repetitions, wait=_wait(here))
    peaks: dict[str, int] = {}
    for name, work in timed.items():
        if hasattr(work, "close"):  # it ran in a process of its own all along, and knows its peak
            peaks[name] = work.close()
    del inputs, work, timed
    works = {name: (None, first_s) for name, (_, first_s) in works.items()}  # the inputs are freed before the weighing
    for name in works:
        if memory and name not in peaks:
            report(f"{case.label}: {name}, memory")
            peaks[name] = peak_in_own_process(case, name, threads=threads)
    return Outcome(
        case,
        [
            Entry(c.name, c.kind, note=notes[c.name])
            if c.name in notes
            else Entry(
                c.name, c.kind, Timing(works[c.name][1], timings[c.name].seconds), peaks.get(c.name)
            )
            for c in contestants
        ],
    )


def judge(target: Target, outcome: Outcome, others: Sequence[Outcome]) -> dict[str, Any] | None:
    """The measured ratio of a target and whether it is met; None when one of the two was not measured."""
    mine = outcome.entry(target.contestant)
    name, _, label = target.against.partition(" @ ")
    theirs_in = next((o for o in others if o.case.label == label), None) if label else outcome
    theirs = theirs_in.entry(name) if theirs_in else None
    if mine is None or theirs is None or mine.timing is None or theirs.timing is None:
        return None
    value: float
    if target.measure == "time":
        spread = ratio(mine.timing, theirs.timing)
        value, low, high = spread.median, spread.low, spread.high
    elif mine.peak_bytes is None or not theirs.peak_bytes:
        return None
    else:
        value = low = high = mine.peak_bytes / theirs.peak_bytes
    return {
        "case": outcome.case.label, "contestant": target.contestant, "against": target.against,
        "measure": target.measure, "ratio": value, "low": low, "high": high, "limit": target.limit,
        "at_least": target.at_least, "met": value >= target.limit if target.at_least else value <= target.limit,
    }  # fmt: skip


def _wait(device_type: str) -> Work:
    if device_type != "cuda":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
