"""The blog's Gaussians: one, and a mixture of two, fitted to a mixture of two; which statement depends on the start.

Shapes: as in gaussian_fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kdrun.studies.contenders import Spec, contenders
from kdrun.studies.findings import Findings
from kdrun.studies.gaussians.claims import (
    End,
    Pair,
    Separation,
    covering_claims,
    distance_claim,
    mode_claims,
    pair_claims,
)
from kdrun.studies.gaussians.fits import fit_gaussians, log_density_NV, nats, stillness
from kdrun.studies.gaussians.pictures import (
    Fits,
    densities_picture,
    distance_picture,
    fit_animation,
    pairs_picture,
    starts_picture,
    steps_picture,
)

# Distances of the teacher's modes in its sigmas, for the question of when a mode is the better place.
DISTANCES = [2 + step / 4 for step in range(25)]
DISTANCE_SIGMA = 0.8  # the widest teacher, 6.4 between the modes, stays within the line
DISTANCE_RATE, DISTANCE_STEPS = 0.1, 400  # Adam's rate and eps: plain descent once gradients are below it


def study(
    *,
    losses: Sequence[Spec],
    teacher_means: Sequence[float],
    teacher_sigma: float,
    start_means: Sequence[float],
    start_sigmas: Sequence[float],
    start_half_gaps: Sequence[float],
    near: float,
    learning_rate: float,
    num_steps: int,
    begin: Callable[[int], Callable[..., None]],
) -> Findings:
    """Where one Gaussian ends and when two have arrived, from every start of a grid; by Adam, in float64."""
    named = contenders(losses)
    teacher_V = _mixture_V(teacher_means, teacher_sigma)
    advance = begin(2 * len(named) + 1)
    fitted = partial(fit_gaussians, learning_rate=learning_rate, num_steps=num_steps)

    singles, ends = {}, []
    grid = list(product(start_sigmas, start_means))
    start_sigmas_N1, start_means_N1 = torch.tensor(grid, dtype=torch.float64).T[:, :, None]
    teacher_NV = teacher_V.expand(len(grid), -1)
    for contender in named:
        path = fitted(contender.loss(), start_means_N1, start_sigmas_N1, teacher_NV)
        singles[contender.label] = path
        for row, value in enumerate(nats(contender.loss(), path, teacher_NV)):
            mean, sigma = float(path.means_SNK[-1, row, 0]), float(path.sigmas_SNK[-1, row, 0])
            gradient, curvature = stillness(contender.loss(), mean, sigma, teacher_V)
            state = state_of(mean, sigma, teacher_means)
            ends.append(End(contender.label, *grid[row], mean, sigma, value, gradient, curvature, state))
        advance(1)

    pairs, couples = [], {}
    gaps = list(product(start_sigmas, start_half_gaps))
    start_means_N2 = torch.tensor([(-gap, gap) for _, gap in gaps], dtype=torch.float64)
    start_sigmas_N2 = torch.tensor([(sigma, sigma) for sigma, _ in gaps], dtype=torch.float64)
    for contender in named:
        path = fitted(contender.loss(), start_means_N2, start_sigmas_N2, teacher_V.expand(len(gaps), -1))
        couples[contender.label] = path
        reached = path.steps_below(near)
        pairs += [
            Pair(contender.label, *gaps[row], float(path.tvd_SN[-1, row]), reached[row]) for row in range(len(gaps))
        ]
        advance(1)

    separations = reverse_kl_by_distance(DISTANCES)
    advance(1)
    shown = _one_start_a_state(ends)
    chosen = min(range(len(gaps)), key=lambda row: abs(gaps[row][0] - 1) + abs(gaps[row][1] - 0.5))
    fits = Fits(named, teacher_V, singles, couples, grid, gaps, one=shown[0], two=chosen)
    distance = (teacher_means[1] - teacher_means[0]) / teacher_sigma
    return Findings(
        claims=(
            *mode_claims(ends, teacher_means, teacher_sigma),
            *covering_claims(ends),
            distance_claim(separations, distance),
            *pair_claims(pairs, near),
        ),
        tables={
            "one_gaussian": [end.row() for end in ends],
            "two_gaussians": [pair.row(near) for pair in pairs],
            "distance": [separation.row() for separation in separations],
        },
        pictures=(
            densities_picture(fits, shown),
            steps_picture(fits),
            starts_picture(named, ends),
            distance_picture(separations, distance),
            pairs_picture(named, pairs, near),
        ),
        animations=(fit_animation(fits),),
    )


def state_of(mean: float, sigma: float, teacher_means: Sequence[float]) -> str:
    """`both modes`, `left mode`, `right mode` or `neither`: the modes within two sigmas of a Gaussian's mean."""
    left, right = (abs(mode - mean) <= 2 * sigma for mode in sorted(teacher_means))
    return {(True, True): "both modes", (True, False): "left mode", (False, True): "right mode"}.get(
        (left, right), "neither"
    )


def reverse_kl_by_distance(distances: Sequence[float]) -> list[Separation]:
    """Reverse KL where it comes to rest when started over both modes, and when started on one; distances in sigmas."""
    (reverse,) = contenders(["rkl"])
    sigma = DISTANCE_SIGMA
    teacher_NV = torch.stack([_mixture_V((-d / 2 * sigma, d / 2 * sigma), sigma) for d in distances]).repeat(2, 1)
    starts = [(0.0, sigma * (1 + d * d / 4) ** 0.5) for d in distances] + [(d / 2 * sigma, sigma) for d in distances]
    means_N1, sigmas_N1 = torch.tensor(starts, dtype=torch.float64).T[:, :, None]
    path = fit_gaussians(
        reverse.loss(), means_N1, sigmas_N1, teacher_NV,
        learning_rate=DISTANCE_RATE, num_steps=DISTANCE_STEPS, eps=DISTANCE_RATE,
    )  # fmt: skip
    values, count = nats(reverse.loss(), path, teacher_NV), len(distances)
    found = []
    for i, distance in enumerate(distances):
        over = float(path.means_SNK[-1, i, 0]), float(path.sigmas_SNK[-1, i, 0])
        gradient, curvature = stillness(reverse.loss(), *over, teacher_NV[i])
        on_mode = float(path.means_SNK[-1, count + i, 0]) / sigma
        found.append(Separation(distance, values[i], values[count + i], on_mode, gradient, curvature))
    return found


def _mixture_V(means: Sequence[float], sigma: float) -> Tensor:
    """Logits of the mixture of equal shares."""
    means_1K = torch.tensor([list(means)], dtype=torch.float64)
    return log_density_NV(means_1K, torch.full_like(means_1K, sigma), torch.full_like(means_1K, 1 / len(means)))[0]


def _one_start_a_state(ends: Sequence[End]) -> list[int]:
    """Rows of the grid, one for each place where reverse KL ended, from a start of the middle sigma if there is one."""
    reverse = [end for end in ends if end.loss == "RKL"]
    middle = sorted({end.start_sigma for end in reverse})[len({end.start_sigma for end in reverse}) // 2]
    chosen = {}
    for state in ("left mode", "both modes", "right mode", "neither"):
        rows = [row for row, end in enumerate(reverse) if end.state == state]
        rows = [row for row in rows if reverse[row].start_sigma == middle] or rows
        if rows:
            # the last start of the left mode and the first of the others: neighbours of another end
            chosen[state] = rows[-1] if state == "left mode" else rows[len(rows) // 2 if state == "both modes" else 0]
    return list(chosen.values())
