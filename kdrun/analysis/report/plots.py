"""What a report draws: curves of training, metrics against a setting, quality against cost, verdicts as intervals."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.analysis.curves import read_curves
from kdrun.analysis.figures import Plot, Series
from kdrun.analysis.seeds import Group, differing
from kdrun.analysis.tables import COSTS, Judged

# Metric of metrics.jsonl -> title, unit, whether it falls by orders of magnitude.
CURVES = {
    "train/loss": ("training loss", "nats a token", True),
    "train/cross_entropy": ("loss part: cross-entropy on the data", "nats a token", True),
    "train/divergence": ("loss part: the divergence trained on", "nats a token", True),
    "valid/nll": ("NLL of the data", "nats a token", True),
    "valid/fkl": ("FKL, KL(teacher || student)", "nats a token", True),
    "valid/rkl": ("RKL, KL(student || teacher)", "nats a token", True),
    "valid/head_gap": ("head gap", "sum of |p - q|", False),
    "valid/tail_gap": ("tail gap", "sum of |p - q|", False),
    "valid/akl_weight": ("AKL weight of the forward KL", "share", False),
}
# Counters, and what another curve or a table says already.
DULL = ("epoch", "peak_memory_gib", "perplexity", "step_s", "teacher_nll", "teacher_entropy")
POINTS = 200  # of a line on a page; a figure's CSV holds the same points, metrics.jsonl all
NEAR = 1.5  # ranges of the points: a level farther away would flatten them

Looks = Mapping[str, int]  # label of a group -> its number on the page


def looks(groups: Sequence[Group]) -> dict[str, int]:
    """The number that tells a group's line in every figure: students only, in the order of the table."""
    return {group.label: i for i, group in enumerate(group for group in groups if group.role == "student")}


def curve_plots(groups: Sequence[Group], look: Looks) -> tuple[list[Plot], list[Plot]]:
    """The main curves, and those of every other metric that the runs logged; seeds thin, their mean bold."""
    curves = {group.label: [read_curves(row.folder) for row in group.rows] for group in groups if group.label in look}
    present = dict.fromkeys(name for runs in curves.values() for run in runs for name in run)
    main = {name if name in present else name.replace("valid/", "train/"): titled for name, titled in CURVES.items()}
    rest = [name for name in present if name not in main and name.split("/")[-1] not in DULL]
    drawn = [_curve(name, titled, curves, look) for name, titled in main.items()]
    more = [_curve(name, (name, "", False), curves, look) for name in rest]
    return [plot for plot in drawn if plot], [plot for plot in more if plot]


def _curve(
    name: str, titled: tuple[str, str, bool], curves: Mapping[str, list[dict[str, Any]]], look: Looks
) -> Plot | None:
    title, unit, log = titled
    series: list[Series] = []
    for label, runs in curves.items():
        lines = [dict(run[name]) for run in runs if run.get(name)]
        if len(lines) > 1:
            series += [Series(label, look[label], *_thinned(line), thin=True) for line in lines]
            steps = [step for step in lines[0] if all(step in line for line in lines)]
            lines = [{step: statistics.fmean(line[step] for line in lines) for step in steps}]
        series += [Series(label, look[label], *_thinned(line)) for line in lines if line]
    if not any(len(one.x) > 1 for one in series):
        return None
    values = [value for one in series for value in one.y]
    return Plot(
        slug(f"curve {name}"), title, "optimiser steps", unit or name, tuple(series),
        log=log and min(values) > 0 and max(values) > 4 * min(values), levels=_teacher_nll(name, curves),
        note={"valid": "held-out rows", "train": "training batches"}.get(name.partition("/")[0], ""),
    )  # fmt: skip


def _thinned(line: Mapping[int, float]) -> tuple[list[float], list[float]]:
    every = -(-len(line) // POINTS)
    steps = [step for i, step in enumerate(line) if i % every == 0 or i == len(line) - 1]
    return [float(step) for step in steps], [line[step] for step in steps]


def _teacher_nll(name: str, curves: Mapping[str, list[dict[str, Any]]]) -> tuple[tuple[str, float], ...]:
    if name != "valid/nll":
        return ()
    first = [round(run["valid/teacher_nll"][0][1], 4) for runs in curves.values() for run in runs
             if run.get("valid/teacher_nll")]  # fmt: skip
    return tuple(("teacher", value) for value in dict.fromkeys(first))


def setting_plots(groups: Sequence[Group], headings: Mapping[str, str]) -> dict[str, list[Plot]]:
    """Numeric setting that differs -> a plot for each metric, mean and standard deviation over the seeds.

    Groups that differ in more than the setting make lines of their own; students that do not have it are levels.
    """
    students = [group for group in groups if group.role == "student" and group.status == "done"]
    found = {}
    for key in differing(students):
        having = [group for group in students if _number(group.settings.get(key))]
        others = [other for other in differing(having) if other != key]
        lines: dict[str, list[Group]] = {}
        for group in having:
            label = ", ".join(f"{other}={group.settings[other]}" for other in others if other in group.settings)
            lines.setdefault(label, []).append(group)
        lines = {k: v for k, v in lines.items() if len({group.settings[key] for group in v}) > 1}
        without = [group for group in students if key not in group.settings]
        plots = [_against(key, metric, heading, lines, without) for metric, heading in headings.items()]
        if any(plots):
            found[key] = [plot for plot in plots if plot]
    return found


def _against(
    key: str, metric: str, heading: str, lines: Mapping[str, list[Group]], without: Sequence[Group]
) -> Plot | None:
    series = []
    for i, (label, members) in enumerate(lines.items()):
        ordered = sorted(members, key=lambda group: group.settings[key])
        points = [(float(g.settings[key]), mean, g.sd(metric)) for g in ordered if (mean := g.mean(metric)) is not None]
        if len(points) > 1:
            x, y, sds = zip(*points, strict=True)
            errors = [(sd or 0.0, sd or 0.0) for sd in sds]
            series.append(Series(label, i, x, y, y_error=errors if any(sd is not None for sd in sds) else None))
    if not series:
        return None
    low, high = float("inf"), float("-inf")
    for one in series:
        for value, (below, above) in zip(one.y, one.y_error or [(0.0, 0.0)] * len(one.y), strict=True):
            low, high = min(low, value - below), max(high, value + above)
    reach = NEAR * (high - low)
    levels = [(group.label, mean) for group in without if (mean := group.mean(metric)) is not None]
    near = [level for level in levels if low - reach <= level[1] <= high + reach]
    seeds = max(len(group.rows) for members in lines.values() for group in members)
    note = "bars: standard deviation over seeds" if seeds > 1 else "one seed: no error bars"
    far = [f"{label} {value:.3g}" for label, value in levels if (label, value) not in near]
    note += f"; outside the picture: {', '.join(far)}" if far else ""
    return Plot(slug(f"{metric} against {key}"), f"{heading} against {key}", key, heading, tuple(series),
                levels=tuple(near), note=note, own_key=len(series) > 1)  # fmt: skip


def cost_plots(groups: Sequence[Group], headings: Mapping[str, str], look: Looks) -> list[Plot]:
    """The first metric of each kind (divergence, text) against training time and peak memory."""
    kinds = [[m for m in headings if m.endswith("/fkl")], [m for m in headings if m.endswith("/rouge_l")]]
    metrics = [found[0] for found in kinds if found] or list(headings)[:1]
    students = [group for group in groups if group.label in look and group.status == "done"]
    plots = []
    for metric in metrics:
        for cost in ("train_s", "train/peak_memory_gib"):
            series = tuple(
                Series(group.label, look[group.label], [x], [y], _bar(group, cost), _bar(group, metric))
                for group in students
                if (x := group.mean(cost)) is not None and (y := group.mean(metric)) is not None
            )
            if len(series) > 1:
                heading, label = headings[metric], {"train_s": "training time (s)"}.get(cost, "peak memory (GiB)")
                plots.append(Plot(slug(f"{metric} against {COSTS[cost]}"), f"{heading} against {label.split(' (')[0]}",
                                  label, heading, series, joined=False))  # fmt: skip
    return plots


def _bar(group: Group, metric: str) -> list[tuple[float, float]] | None:
    sd = group.sd(metric)
    return [(sd, sd)] if sd else None


def verdict_plots(judged: Judged, headings: Mapping[str, str], look: Looks, baseline: str) -> list[Plot]:
    """For each metric the differences to the baseline with their intervals, a row a group."""
    plots = []
    for metric, heading in headings.items():
        found = [(group.label, v) for group, each in judged for v in each if v.measure == metric]
        series = tuple(
            Series(label, look[label], [v.difference], [float(i)],
                   [(max(0.0, v.difference - v.low), max(0.0, v.high - v.difference))])
            for i, (label, v) in enumerate(found)
        )  # fmt: skip
        if series:
            plots.append(Plot(slug(f"verdict {metric}"), heading, f"difference to {baseline}", "", series,
                              joined=False, rows=tuple(label for label, _ in found)))  # fmt: skip
    return plots


def slug(text: str) -> str:
    """A file name: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
