"""Which loss is faster in the rank study, and what that says of the blog's statement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdrun.studies.findings import Claim, Verdict, holds
from kdrun.studies.intervals import mean_over_seeds

if TYPE_CHECKING:
    from kdrun.studies.rank.study import Course

FLOOR = 1e-3  # of a distance at the start: below it both count as arrived, and rounding does not decide


def advantages(courses: Mapping[tuple[float, str], Course], ranks: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each start, loss but FKL, distance and rank: how far forward KL is ahead of that loss.

    ahead: mean over seeds of the mean over steps of ln(that loss's distance / FKL's), positive where FKL is faster;
    low, high: its 95% interval over seeds; tenth: median step at which a tenth of the start's distance is reached.
    """
    rows = []
    for (std, label), course in courses.items():
        forward = courses[std, "FKL"]
        for what, distances_LSR in course.distances.items():
            if label == "FKL":
                continue
            ahead_SR = mean_log_ratio(distances_LSR, forward.distances[what])
            for r, rank in enumerate(ranks):
                mean = mean_over_seeds(ahead_SR[:, r].tolist())
                rows.append({
                    "distance": what, "init_std": std, "loss": label, "rank": rank,
                    "ahead": mean.value, "low": mean.low, "high": mean.high,
                    "tenth": steps_to_tenth(course.steps, distances_LSR[:, :, r]),
                    "tenth_fkl": steps_to_tenth(course.steps, forward.distances[what][:, :, r]),
                })  # fmt: skip
    return rows


def mean_log_ratio(distances_L: Tensor, others_L: Tensor) -> Tensor:
    """Mean over the first dimension of ln(distances / others), both from below cut at a thousandth of their start."""
    cut, others_cut = (torch.maximum(each, FLOOR * each[:1]) for each in (distances_L, others_L))
    return (cut / others_cut).log().mean(0)


def steps_to_tenth(steps: Sequence[int], distances_LS: Tensor) -> float:
    """Median over seeds of the first step with a distance below a tenth of the start's; inf where most never are."""
    below_LS = distances_LS < 0.1 * distances_LS[:1]
    first_S = torch.tensor(steps, dtype=torch.float64)[below_LS.to(torch.uint8).argmax(0)]
    return float(torch.where(below_LS.any(0), first_S, torch.inf).median())


def faster_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
    """Forward KL is faster than reverse KL at every rank, in one distance; judged for every start."""
    what, sides = rows[0]["distance"], {}
    for std in sorted({row["init_std"] for row in rows}):
        here = [row for row in rows if row["init_std"] == std]
        sides[std] = side(here)
    of_side = {name: [f"{std:g}" for std, each in sides.items() if each == name] for name in ("FKL", "RKL", "neither")}
    verdict: Verdict = "holds only when"
    condition = f"the start's weights have a standard deviation of {', '.join(of_side['FKL'])}"
    if not of_side["FKL"] or len(of_side["FKL"]) == len(sides):
        verdict, condition = holds(bool(of_side["FKL"])), ""
    said = [f"{name} at {', '.join(stds)}" for name, stds in of_side.items() if stds]
    turns = [turn for rank in sorted({row["rank"] for row in rows}) if (turn := turning_std(rows, rank)) is not None]
    turned = f"; the order turns at {min(turns):.2g} to {max(turns):.2g}, by rank" if turns else ""
    ends = [[row for row in rows if row["init_std"] == std] for std in (min(sides), max(sides))]
    spans = [f"{min(row['ahead'] for row in end):+.2f} to {max(row['ahead'] for row in end):+.2f}" for end in ends]
    return Claim(
        f"forward_faster_{what}",
        f"Forward KL converges faster than reverse KL at every rank of the teacher, in the {what}.",
        "the blog on forward and reverse KL",
        f"ahead at every rank, by standard deviation of the start: {'; '.join(said)}. Mean ln(RKL's / FKL's distance): "
        f"{spans[0]} at {min(sides):g}, {spans[1]} at {max(sides):g}{turned}",
        "sign of the 95% interval over seeds of the mean over steps of ln(RKL's / FKL's distance), at every rank",
        verdict, condition,
    )  # fmt: skip


def side(rows: Sequence[Mapping[str, Any]]) -> str:
    """FKL, RKL or neither: which is ahead in every row, by its interval."""
    if all(row["low"] > 0 for row in rows):
        return "FKL"
    return "RKL" if all(row["high"] < 0 for row in rows) else "neither"


def turning_std(rows: Sequence[Mapping[str, Any]], rank: int) -> float | None:
    """The last standard deviation at which forward KL comes ahead, between two that were tried; None if it does not."""
    points = sorted((row["init_std"], row["ahead"]) for row in rows if row["rank"] == rank)
    turns = [
        math.exp(math.log(near) + math.log(far / near) * -behind / (ahead - behind))
        for (near, behind), (far, ahead) in pairwise(points)
        if behind <= 0 < ahead
    ]
    return turns[-1] if turns else None
