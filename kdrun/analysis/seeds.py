"""Runs that differ in nothing but the seed, as one: mean and standard deviation."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from kdrun.analysis.comparison import NOT_SETTINGS, Row, differing_settings, without_seed


@dataclass(frozen=True)
class Group:
    """Finished runs of different seeds and otherwise equal settings; or one run that is not done, alone."""

    label: str
    rows: tuple[Row, ...]
    settings: dict[str, Any]

    @property
    def status(self) -> str:
        """done, or how the one run of the group stands."""
        return self.rows[0].status

    @property
    def role(self) -> str:
        """teacher, or student."""
        return self.rows[0].role

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that any run has."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it."""
        return [row.metrics[metric] for row in self.rows if metric in row.metrics]

    def mean(self, metric: str) -> float | None:
        """The mean over the runs that have the metric; None when none has."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def sd(self, metric: str) -> float | None:
        """The standard deviation over seeds (n - 1); None for one seed."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


def group_by_seed(rows: Sequence[Row]) -> list[Group]:
    """The rows in groups, in the order of their first members.

    A run that is not done stands alone, and so does a second run of the same seed: it is a repetition, not a new draw.
    """
    members: dict[tuple[Any, ...], list[Row]] = {}
    repetitions: Counter[tuple[Any, ...]] = Counter()
    for i, row in enumerate(rows):
        key: tuple[Any, ...] = ("alone", i)
        if row.status == "done" and "seed" in row.settings:
            same = _identity(row)
            draw = (*same, repr(row.settings["seed"]))
            key = (*same, repetitions[draw])
            repetitions[draw] += 1
        members.setdefault(key, []).append(row)
    groups = [_group(tuple(found)) for found in members.values()]
    groups = [replace(g, label=f"{g.label} (random weights)") if g.rows[0].random_init else g for g in groups]
    labels = [group.label for group in groups]
    return [
        group
        if labels.count(group.label) == 1
        else replace(group, label=f"{group.label} ({group.rows[0].folder.name})")
        for group in groups
    ]


def differing(groups: Sequence[Group]) -> list[str]:
    """The settings that differ between groups: those of the rows, without the seed."""
    return [key for key in differing_settings([row for group in groups for row in group.rows]) if key != "seed"]


def _identity(row: Row) -> tuple[Any, ...]:
    kept = {key: value for key, value in row.settings.items() if key != "seed" and not key.startswith(NOT_SETTINGS)}
    return tuple((key, repr(kept[key])) for key in sorted(kept))


def _group(rows: tuple[Row, ...]) -> Group:
    settings = {key: value for key, value in rows[0].settings.items() if key != "seed" or len(rows) == 1}
    if rows[0].status != "done":
        return Group(rows[0].label, rows, settings)
    labels = list(dict.fromkeys(without_seed(row) for row in rows))
    if len(labels) > 1:  # akl-seed1, akl-seed2: what the names have in common
        same = [signs[0] for signs in takewhile(lambda signs: len(set(signs)) == 1, zip(*labels, strict=False))]
        labels = [re.sub(r"[-_ ]*(seed|s)?[-_ =]*$", "", "".join(same)) or labels[0]]
    return Group(labels[0], rows, settings)
