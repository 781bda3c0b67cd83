"""Seconds of several contestants, side by side: warm-up apart, then every one once a round, in a rotated order.

The machine's speed drifts (other processes, heat), so ratios are taken within a round, where both met the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """first_s: the first call, with compilation and the first touch of memory; seconds: one entry a round."""

    first_s: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def seconds_of(
    work: Callable[[], object],
    *,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call.

    Args:
        wait: blocks until the device has done what it was given; called before every reading of the clock.
    """
    wait()
    start = clock()
    work()
    wait()
    return clock() - start


def alternate(
    works: Mapping[str, Callable[[], object]], repetitions: int, *, measure: Callable[[Callable[[], object]], float]
) -> dict[str, tuple[float, ...]]:
    """Seconds of each work, one entry a round; warmed up already."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for order in orders(list(works), repetitions):
        for name in order:
            seconds[name].append(measure(works[name]))
    return {name: tuple(values) for name, values in seconds.items()}


def orders(names: Sequence[str], repetitions: int) -> Iterator[list[str]]:
    """The order of each round: rotated by one a round, and turned round in every second, so that neither a place in
    the round nor a neighbour is always the same."""
    for turn in range(repetitions):
        shift = turn % max(len(names), 1)
        rotated = [*names[shift:], *names[:shift]]
        yield rotated[::-1] if turn % 2 else rotated


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear between neighbours) of at least one value."""
    places = [share * (len(values) - 1) for share in (0.5, 0.25, 0.75)]
    return Spread(*np.interp(places, range(len(values)), sorted(values)).tolist())


def ratio(mine: Timing, theirs: Timing) -> Spread:
    """Spread of mine / theirs, round by round."""
    return spread([a / b for a, b in zip(mine.seconds, theirs.seconds, strict=True)])
