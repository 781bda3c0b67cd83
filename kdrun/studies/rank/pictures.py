"""Pictures of the rank study: a panel a rank, and who is ahead against the spread of the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdrun.studies.contenders import Contender
from kdrun.studies.pictures import Curve, Panel, Picture

if TYPE_CHECKING:
    from kdrun.studies.rank.study import Course

NAMES = {
    "probabilities": "L2 of the probabilities",
    "weights": "L2 of the centred weights",
}
AHEAD = "mean of ln(distance / FKL's)"
START = "standard deviation of the start's weights"


def rank_picture(named: Sequence[Contender], courses: Sequence[Course], ranks: Sequence[int], what: str) -> Picture:
    """A distance against steps, a panel a rank, from one start; geometric mean of the seeds, all in pale."""
    std = courses[0].init_std
    tops = [float(course.distances[what].max()) for course in courses]
    lows = [float(course.distances[what].min()) for course in courses]
    panels = []
    for r, rank in enumerate(ranks):
        curves = []
        for contender, course in zip(named, courses, strict=True):
            values_LS = course.distances[what][:, :, r]
            band = values_LS.amin(1).tolist(), values_LS.amax(1).tolist()
            curves.append(
                Curve(contender.label, course.steps, values_LS.log().mean(1).exp().tolist(), contender.look, band=band)
            )  # fmt: skip
        panels.append(
            Panel(
                f"Teacher of rank {rank}", "step", NAMES[what], tuple(curves), log_y=True,
                y_limits=(max(min(lows), 1e-4 * max(tops)) / 1.2, 1.2 * max(tops)),
            )
        )  # fmt: skip
    return Picture(
        f"{what}_from_{std:g}", f"{NAMES[what]}, student and teacher: starts of standard deviation {std:g}",
        tuple(panels), columns=3,
    )  # fmt: skip


def order_picture(reverse: Sequence[Mapping[str, Any]]) -> Picture:
    """How far forward KL is ahead of reverse KL against the start, a curve a rank, with the seeds' interval."""
    panels = []
    for what, name in NAMES.items():
        curves = []
        for look, rank in enumerate(sorted({row["rank"] for row in reverse})):
            rows = [row for row in reverse if (row["distance"], row["rank"]) == (what, rank)]
            at = [row["init_std"] for row in rows]
            band = [row["low"] for row in rows], [row["high"] for row in rows]
            curves.append(Curve(f"rank {rank}", at, [row["ahead"] for row in rows], look, band=band))
        panels.append(
            Panel(
                name, START, "mean of ln(RKL's / FKL's distance)", tuple(curves), log_x=True,
                levels=(("", 0.0),),
            )
        )  # fmt: skip
    return Picture(
        "order", "Forward against reverse KL by the spread of the start: above 0 FKL is faster", tuple(panels)
    )


def others_picture(named: Sequence[Contender], ahead: Sequence[Mapping[str, Any]]) -> Picture:
    """How far every loss is behind forward KL, the mean over ranks."""
    panels = []
    for what, name in NAMES.items():
        curves = []
        for contender in named:
            rows = [row for row in ahead if (row["distance"], row["loss"]) == (what, contender.label)]
            at = sorted({row["init_std"] for row in rows})
            means = [fmean(row["ahead"] for row in rows if row["init_std"] == std) for std in at]
            if rows:
                curves.append(Curve(contender.label, at, means, contender.look))
        panels.append(Panel(name, START, AHEAD, tuple(curves), log_x=True, levels=(("", 0.0),)))
    return Picture(
        "others", "Every loss against FKL, mean over ranks and seeds: below 0 the loss is faster", tuple(panels)
    )
