"""What is compared: a case (one task, its inputs) and its contestants, timed in alternation, each weighed apart.

To add a contestant, write one function `inputs -> work` and name it in its case's `contestants`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from kdrun.bench.memory import peak_in_own_process, silence
from kdrun.bench.timing import Timing, alternate, ratio, seconds_of

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
    weighed: bool = True  # whether its memory is measured


class Case(Protocol):
    """One task at one size, of plain values only: it is pickled for the process that weighs a contestant."""

    @property
    def label(self) -> str:
        """What the table says above the rows."""

    @property
    def sizes(self) -> dict[str, float]:
        """Sizes by name, for the JSON and for the picture's axis."""

    @property
    def device(self) -> str:
        """cpu or cuda[:N]."""

    def build(self) -> Any:
        """The inputs that all contestants share, from a fixed seed."""

    def contestants(self) -> list[Contestant]:
        """Who competes, absent peers included."""


@runtime_checkable
class Counted(Protocol):
    """Work that tells more than its seconds."""

    def __call__(self) -> object:
        """Do the task once more."""

    def figures(self, seconds: Sequence[float]) -> dict[str, float]:
        """Further figures of the rounds, tokens per second for instance."""


@runtime_checkable
class Apart(Counted, Protocol):
    """Work that is done in a process of its own, which measures its own memory."""

    def close(self) -> int | None:
        """End the process; its peak in bytes, None when it cannot be told."""


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
    reference: str
    targets: Sequence[Target]
    memory_means: str  # what the peak is measured from
    curve: Sequence[Case] = ()
    axis: str | None = None  # the size on the picture's horizontal axis, with its unit; None: bars
    floor: str | None = None  # the contestant that does only what nobody can do without
    floor_units: float = 1.0  # how many times the floor's work a contestant has to do at least
    floor_means: str = "share of the floor's speed"


def is_installed(package: str) -> bool:
    """Whether a package could be imported; nothing is imported."""
    return importlib.util.find_spec(package) is not None


def hold(
    case: Case,
    *,
    repetitions: int,
    memory: bool,
    threads: int | None,
    only: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda _: None,
    advance: Callable[[], object] = lambda: None,
) -> Outcome:
    """Warm up and time the contestants of a case in alternation, then weigh each in a process of its own.

    A peer that fails is an entry with its error; a failure of ours is raised.

    Args:
        only: the contestants whose names contain one of these words; None: all.
        advance: called after each of `num_measurements`.
    """
    silence()
    contestants = chosen(case, only)
    notes: dict[str, str] = {}
    report(f"{case.label}: {len(contestants)} contestants, {repetitions} rounds")
    timings, peaks, extra = _time(case, contestants, notes, repetitions, advance)
    weighed = [c.name for c in contestants if memory and c.weighed and c.name in timings and c.name not in peaks]
    if weighed:
        report(f"{case.label}: memory of {len(weighed)}, each in a process of its own")
    for name in weighed:
        peaks[name] = peak_in_own_process(case, name, threads=threads)
        advance()
    entries = [
        Entry(c.name, c.kind, timings.get(c.name), peaks.get(c.name), notes.get(c.name, ""), extra.get(c.name, {}))
        for c in contestants
    ]
    return Outcome(case, entries)


def chosen(case: Case, only: Sequence[str] | None) -> list[Contestant]:
    """The contestants of a case that run on its device and whose names contain one of the words (None: all)."""
    device_type = case.device.partition(":")[0]
    return [
        c
        for c in case.contestants()
        if c.device in (None, device_type) and (only is None or any(word in c.name for word in only))
    ]


def num_measurements(case: Case, *, repetitions: int, memory: bool, only: Sequence[str] | None) -> int:
    """How many calls of a contestant and weighings `hold` makes at most: a peer that is missing makes none."""
    present = [c for c in chosen(case, only) if c.package is None or is_installed(c.package)]
    return len(present) * (1 + repetitions) + (sum(c.weighed for c in present) if memory else 0)


def _time(
    case: Case,
    contestants: Sequence[Contestant],
    notes: dict[str, str],
    repetitions: int,
    advance: Callable[[], object],
) -> tuple[dict[str, Timing], dict[str, int | None], dict[str, dict[str, float]]]:
    """Timings; peaks and further figures of the contestants that ran in processes of their own. Frees the inputs."""
    wait = _wait(case.device)

    def measure(work: Work) -> float:
        seconds = seconds_of(work, wait=wait)
        advance()
        return seconds

    inputs = case.build()
    works: dict[str, Work] = {}
    first: dict[str, float] = {}
    try:
        for c in contestants:
            if c.package is not None and not is_installed(c.package):
                notes[c.name] = f"{c.package} is not installed"
                continue
            try:
                work = c.start(inputs)
                first[c.name] = measure(work)
                works[c.name] = work
            except Exception as error:
                if c.kind != "peer":
                    raise
                notes[c.name] = f"failed: {_one_line(error)}"
        seconds = alternate(works, repetitions, measure=measure)
    finally:
        apart = {name: work for name, work in works.items() if isinstance(work, Apart)}
        closed = {name: work.close() for name, work in apart.items()}
    timings = {name: Timing(first[name], values) for name, values in seconds.items()}
    counted = {name: work.figures(seconds[name]) for name, work in works.items() if isinstance(work, Counted)}
    return timings, closed, counted


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


def _wait(device: str) -> Work:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
