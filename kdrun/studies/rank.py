"""The blog's rank study: linear maps of some rank fitted under several losses; which loss is faster, from which start.

Shapes: M maps side by side (num_seeds times the ranks), C contexts, D inputs, V classes, L looks, S seeds, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kdrun.studies.contenders import Contender, Spec, contenders
from kdrun.studies.findings import Claim, Findings, Table, holds_in, rows_with
from kdrun.studies.fit import fit
from kdrun.studies.intervals import mean_over_seeds
from kdrun.studies.pictures import Curve, Panel, Picture

SIZE = 64  # inputs, classes, and contexts a step
NUM_LOOKS = 100
FLOOR = 1e-3  # of a distance at the start: below it both count as arrived, and rounding does not decide
DISTANCES = {"probabilities": "L2 of the probabilities", "weights": "L2 of the centred weights"}


@dataclass(frozen=True)
class Maps:
    """Teachers of every rank and the students' starts (of standard deviation 1), for every seed; one set of contexts.

    held_out_CD: contexts that no step sees, unless contexts are fixed.
    """

    teacher_MDV: Tensor
    start_MDV: Tensor
    held_out_CD: Tensor
    context_seed: int


@dataclass(frozen=True)
class Course:
    """Distances [L, S, R] of one loss's students to their teachers at some steps, from one start; keys: DISTANCES."""

    steps: list[int]
    distances: dict[str, Tensor]


Courses = Mapping[tuple[float, str], Course]  # (standard deviation of the start, label of the loss) -> course


def study(
    *,
    losses: Sequence[Spec],
    ranks: Sequence[int],
    init_std: Sequence[float],
    teacher_std: float,
    contexts: str,
    num_seeds: int,
    learning_rate: float,
    num_steps: int,
    seed: int,
    begin: Callable[[int], Callable[..., None]],
) -> Findings:
    """How fast each loss takes full 64 x 64 maps to teachers of every rank, in probabilities and in weights; Adam."""
    named = contenders(losses)
    maps = draw_maps(ranks, num_seeds=num_seeds, teacher_std=teacher_std, seed=seed)
    advance = begin(len(init_std) * len(named))
    courses = {}
    for std in init_std:
        for contender in named:
            courses[std, contender.label] = fit_maps(
                contender, maps, std, fresh=contexts == "fresh", learning_rate=learning_rate, num_steps=num_steps,
                num_seeds=num_seeds,
            )  # fmt: skip
            advance()
    ahead = advantages(courses, ranks)
    reverse = rows_with(ahead, loss="RKL")
    ends = (init_std[-1], init_std[0])
    return Findings(
        claims=[faster_claim(rows_with(reverse, distance=what)) for what in DISTANCES],
        tables={"ahead": ahead, "course": _course_table(courses, ranks)},
        pictures=[
            *(rank_picture(named, courses, ranks, std=std, what=what) for what in DISTANCES for std in ends),
            order_picture(reverse),
            others_picture(named, ahead),
        ],
    )


# -- the fits ----------------------------------------------------------------------------------------------------------


def draw_maps(ranks: Sequence[int], *, num_seeds: int, teacher_std: float, seed: int) -> Maps:
    """Teachers: products of two normal factors, [64, r] and [r, 64], over sqrt(r), so that weights vary by teacher_std
    at every rank; students: normal weights of full rank. Maps of one seed stand together, a rank each.
    """
    generator = torch.Generator().manual_seed(seed)
    teachers, starts = [], []
    for rank in [*ranks] * num_seeds:
        left, right = torch.randn(SIZE, rank, generator=generator), torch.randn(rank, SIZE, generator=generator)
        teachers.append(teacher_std * rank**-0.5 * left @ right)
        starts.append(torch.randn(SIZE, SIZE, generator=generator))
    held_out_CD = torch.randn(SIZE, SIZE, generator=generator)
    return Maps(torch.stack(teachers), torch.stack(starts), held_out_CD, context_seed=seed + 1)


def fit_maps(
    contender: Contender,
    maps: Maps,
    init_std: float,
    *,
    fresh: bool,
    learning_rate: float,
    num_steps: int,
    num_seeds: int,
) -> Course:
    """The course of every map under one loss. Contexts are normal: drawn anew for every step, or the held-out ones."""
    weights_MDV = (init_std * maps.start_MDV).requires_grad_()
    contexts_CD = maps.held_out_CD.clone()
    teacher_logits_NV = (contexts_CD @ maps.teacher_MDV).flatten(0, 1)
    p_MCV = (maps.held_out_CD @ maps.teacher_MDV).softmax(-1)
    generator = torch.Generator().manual_seed(maps.context_seed)
    steps: list[int] = []
    seen: dict[str, list[Tensor]] = {what: [] for what in DISTANCES}

    def look(step: int, _: Tensor) -> None:
        if step % max(1, num_steps // NUM_LOOKS) == 0 or step == num_steps:
            steps.append(step)
            q_MCV = (maps.held_out_CD @ weights_MDV).softmax(-1)
            seen["probabilities"].append((q_MCV - p_MCV).square().sum(-1).mean(-1).sqrt())
            seen["weights"].append(row_centred_distance(weights_MDV, maps.teacher_MDV))
        if fresh:  # the logits that `fit` holds are written over: it reads them anew at every step
            contexts_CD.normal_(generator=generator)
            teacher_logits_NV.copy_((contexts_CD @ maps.teacher_MDV).flatten(0, 1))

    fit(
        contender.loss(), lambda: (contexts_CD @ weights_MDV).flatten(0, 1), teacher_logits_NV,
        optimizer=torch.optim.Adam([weights_MDV], lr=learning_rate), num_steps=num_steps, look=look,
    )  # fmt: skip
    return Course(
        steps, {what: torch.stack(each).double().unflatten(1, (num_seeds, -1)) for what, each in seen.items()}
    )


def row_centred_distance(student_MDV: Tensor, teacher_MDV: Tensor) -> Tensor:
    """L2 distance of the weights, a map each, after every row's mean over the classes is taken away.

    A constant added to a row adds the same to all logits of a context, and softmax does not see it: without centring
    two maps that give the same probabilities would be apart.
    """
    gap_MDV = student_MDV - teacher_MDV
    return (gap_MDV - gap_MDV.mean(-1, keepdim=True)).flatten(1).norm(dim=1)


# -- tables and claims -------------------------------------------------------------------------------------------------


def advantages(courses: Courses, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each start, loss but FKL, distance and rank: how far forward KL is ahead of that loss.

    ahead: mean over seeds of the mean over steps of ln(that loss's distance / FKL's), positive where FKL is faster;
    low, high: its 95% interval over seeds; tenth: median step at which a tenth of the start's distance is reached.
    """
    rows = []
    for (std, label), course in courses.items():
        if label == "FKL":
            continue
        for what, distances_LSR in course.distances.items():
            forward_LSR = courses[std, "FKL"].distances[what]
            ahead_SR = mean_log_ratio(distances_LSR, forward_LSR)
            for r, rank in enumerate(ranks):
                mean = mean_over_seeds(ahead_SR[:, r].tolist())
                rows.append({
                    "distance": what, "init_std": std, "loss": label, "rank": rank,
                    "ahead": mean.value, "low": mean.low, "high": mean.high,
                    "tenth": steps_to_tenth(course.steps, distances_LSR[:, :, r]),
                    "tenth_fkl": steps_to_tenth(course.steps, forward_LSR[:, :, r]),
                })  # fmt: skip
    return rows


def mean_log_ratio(distances_L: Tensor, others_L: Tensor) -> Tensor:
    """Mean over the first dimension of ln(distances / others), both from below cut at a thousandth of their start."""
    cut, others_cut = (torch.maximum(each, FLOOR * each[:1]) for each in (distances_L, others_L))
    return (cut / others_cut).log().mean(0)


def steps_to_tenth(steps: Sequence[int], distances_LS: Tensor) -> float:
    """Median over seeds of the first step with a distance below a tenth of the start's; inf where most never are."""
    steps_L1 = torch.tensor(steps, dtype=torch.float64)[:, None]
    below_LS = distances_LS < 0.1 * distances_LS[:1]
    return float(torch.where(below_LS, steps_L1, torch.inf).amin(0).median())


def _course_table(courses: Courses, ranks: Sequence[int]) -> Table:
    return [
        {
            "init_std": std, "loss": label, "rank": rank, "step": step,
            **{f"{what}_mean_of_seeds": float(course.distances[what][look, :, r].mean()) for what in DISTANCES},
        }
        for (std, label), course in courses.items()
        for r, rank in enumerate(ranks)
        for look, step in enumerate(course.steps)
    ]  # fmt: skip


def faster_claim(rows: Table) -> Claim:
    """Forward KL is faster than reverse KL at every rank, in one distance; judged for every start."""
    what = rows[0]["distance"]
    by_start = {std: rows_with(rows, init_std=std) for std in sorted({r["init_std"] for r in rows})}
    of_side: dict[str, list[str]] = {"FKL": [], "RKL": [], "neither": []}
    for std, here in by_start.items():
        of_side[side(here)].append(f"{std:g}")
    said = [f"{name} at {', '.join(stds)}" for name, stds in of_side.items() if stds]
    turns = [turn for rank in sorted({row["rank"] for row in rows}) if (turn := turning_std(rows, rank)) is not None]
    turned = f"; the order turns at {min(turns):.2g} to {max(turns):.2g}, by rank" if turns else ""
    spans = [
        f"{min(row['ahead'] for row in by_start[end]):+.2f} to {max(row['ahead'] for row in by_start[end]):+.2f} at "
        f"{end:g}"
        for end in (min(by_start), max(by_start))
    ]
    where = f"the start's weights have a standard deviation of {', '.join(of_side['FKL'])}"
    return Claim(
        f"forward_faster_{what}",
        f"Forward KL converges faster than reverse KL at every rank of the teacher, in the {what}.",
        "the blog on forward and reverse KL",
        f"ahead at every rank, by standard deviation of the start: {'; '.join(said)}. Mean ln(RKL's / FKL's distance): "
        f"{', '.join(spans)}{turned}",
        "sign of the 95% interval over seeds of the mean over steps of ln(RKL's / FKL's distance), at every rank",
        *holds_in(len(of_side["FKL"]), len(by_start), where=where),
    )


def side(rows: Table) -> str:
    """FKL, RKL or neither: which is ahead in every row, by its interval."""
    if all(row["low"] > 0 for row in rows):
        return "FKL"
    return "RKL" if all(row["high"] < 0 for row in rows) else "neither"


def turning_std(rows: Table, rank: int) -> float | None:
    """The last standard deviation at which forward KL comes ahead, between two that were tried; None if it does not."""
    points = sorted((row["init_std"], row["ahead"]) for row in rows_with(rows, rank=rank))
    turns = [
        math.exp(math.log(near) + math.log(far / near) * -behind / (ahead - behind))
        for (near, behind), (far, ahead) in pairwise(points)
        if behind <= 0 < ahead
    ]
    return turns[-1] if turns else None


# -- pictures ----------------------------------------------------------------------------------------------------------


def rank_picture(
    named: Sequence[Contender], courses: Courses, ranks: Sequence[int], *, std: float, what: str
) -> Picture:
    """A distance against steps, a panel a rank, from one start; geometric mean of the seeds, all in pale."""
    drawn = [(contender, courses[std, contender.label].distances[what]) for contender in named]
    top = max(float(values_LSR.max()) for _, values_LSR in drawn)
    low = min(float(values_LSR.min()) for _, values_LSR in drawn)
    steps = courses[std, "FKL"].steps
    panels = []
    for r, rank in enumerate(ranks):
        curves = []
        for contender, values_LSR in drawn:
            values_LS = values_LSR[:, :, r]
            mean = values_LS.log().mean(1).exp().tolist()
            band = values_LS.amin(1).tolist(), values_LS.amax(1).tolist()
            curves.append(Curve(contender.label, steps, mean, contender.look, band=band))
        limits = (max(low, 1e-4 * top) / 1.2, 1.2 * top)
        panels.append(Panel(f"Teacher of rank {rank}", "step", DISTANCES[what], curves, log_y=True, y_limits=limits))
    title = f"{DISTANCES[what]}, student and teacher: starts of standard deviation {std:g}"
    return Picture(f"{what}_from_{std:g}", title, panels, columns=3)


def _against_start(what: str, y_label: str, curves: Sequence[Curve]) -> Panel:
    x_label = "standard deviation of the start's weights"
    return Panel(DISTANCES[what], x_label, y_label, curves, log_x=True, levels=[("", 0.0)])


def order_picture(reverse: Table) -> Picture:
    """How far forward KL is ahead of reverse KL against the start, a curve a rank, with the seeds' interval."""
    panels = []
    for what in DISTANCES:
        curves = []
        for look, rank in enumerate(sorted({row["rank"] for row in reverse})):
            rows = rows_with(reverse, distance=what, rank=rank)
            at, ahead, low, high = ([row[key] for row in rows] for key in ("init_std", "ahead", "low", "high"))
            curves.append(Curve(f"rank {rank}", at, ahead, look, band=(low, high)))
        panels.append(_against_start(what, "mean of ln(RKL's / FKL's distance)", curves))
    return Picture("order", "Forward against reverse KL by the spread of the start: above 0 FKL is faster", panels)


def others_picture(named: Sequence[Contender], ahead: Table) -> Picture:
    """How far every loss is behind forward KL, the mean over ranks."""
    panels = []
    for what in DISTANCES:
        curves = []
        for contender in named:
            rows = rows_with(ahead, distance=what, loss=contender.label)
            at = sorted({row["init_std"] for row in rows})
            means = [fmean(row["ahead"] for row in rows_with(rows, init_std=std)) for std in at]
            if rows:
                curves.append(Curve(contender.label, at, means, contender.look))
        panels.append(_against_start(what, "mean of ln(distance / FKL's)", curves))
    return Picture("others", "Every loss against FKL, mean over ranks and seeds: below 0 the loss is faster", panels)
