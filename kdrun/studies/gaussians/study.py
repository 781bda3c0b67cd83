"""The blog's Gaussians: one, and a mixture of two, fitted to a mixture of two; which statement depends on the start.

Shapes: as in fits.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product

import torch
from torch import Tensor

from kdrun.losses import make_loss
from kdrun.studies.contenders import Spec, contenders
from kdrun.studies.findings import Findings
from kdrun.studies.gaussians import claims, pictures
from kdrun.studies.gaussians.claims import End, Pair, Separation
from kdrun.studies.gaussians.fits import Path, fit_gaussians, log_density_NV, nats, stillness

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

    def fit_all(starts: pictures.Grid, components: Sequence[float]) -> dict[str, Path]:
        """Every loss from every start (sigma, place); a component at each of these multiples of the place."""
        sigmas_N1, places_N1 = torch.tensor(starts, dtype=torch.float64).T[:, :, None]
        means_NK = places_N1 * torch.tensor(components, dtype=torch.float64)
        paths = {}
        for contender in named:
            paths[contender.label] = fit_gaussians(
                contender.loss(), means_NK, sigmas_N1.expand_as(means_NK), teacher_V.expand(len(starts), -1),
                learning_rate=learning_rate, num_steps=num_steps,
            )  # fmt: skip
            advance()
        return paths

    grid, gaps = list(product(start_sigmas, start_means)), list(product(start_sigmas, start_half_gaps))
    singles, couples = fit_all(grid, [1]), fit_all(gaps, [-1, 1])
    ends, pairs = [], []
    for contender in named:
        single, couple = singles[contender.label], couples[contender.label]
        values = nats(contender.loss(), single, teacher_V.expand(len(grid), -1))
        for row, start in enumerate(grid):
            mean, sigma = single.gaussian(row)
            still = stillness(contender.loss(), mean, sigma, teacher_V)
            state = state_of(mean, sigma, teacher_means)
            ends.append(End(contender.label, *start, mean, sigma, values[row], *still, state))
        steps = couple.steps_below(near)
        pairs += [
            Pair(contender.label, *gap, float(couple.tvd_SN[-1, row]), steps[row]) for row, gap in enumerate(gaps)
        ]
    separations = reverse_kl_by_distance(DISTANCES)
    advance()
    shown = _one_start_a_state(ends, start_sigmas[len(start_sigmas) // 2])
    chosen = min(range(len(gaps)), key=lambda row: abs(gaps[row][0] - 1) + abs(gaps[row][1] - 0.5))
    fits = pictures.Fits(named, teacher_V, singles, couples, grid, gaps, one=shown[0], two=chosen)
    distance = (teacher_means[1] - teacher_means[0]) / teacher_sigma
    return Findings(
        claims=[
            *claims.mode_claims(ends, teacher_means, teacher_sigma),
            claims.covering_claim(ends),
            claims.distance_claim(separations, distance),
            *claims.pair_claims(pairs, near),
        ],
        tables={
            "one_gaussian": [asdict(end) for end in ends],
            "two_gaussians": [pair.row(near) for pair in pairs],
            "distance": [asdict(separation) for separation in separations],
        },
        pictures=[
            pictures.densities_picture(fits, shown),
            pictures.steps_picture(fits),
            pictures.starts_picture(named, ends),
            pictures.distance_picture(separations, distance),
            pictures.pairs_picture(named, pairs, near),
        ],
        animations=[pictures.fit_animation(fits)],
    )


def state_of(mean: float, sigma: float, teacher_means: Sequence[float]) -> str:
    """`both modes`, `left mode`, `right mode` or `neither`: the modes within two sigmas of a Gaussian's mean."""
    left, right = (abs(mode - mean) <= 2 * sigma for mode in teacher_means)
    if left and right:
        return "both modes"
    return "left mode" if left else "right mode" if right else "neither"


def reverse_kl_by_distance(distances: Sequence[float]) -> list[Separation]:
    """Reverse KL where it comes to rest when started over both modes, and when started on one; distances in sigmas."""
    reverse, sigma = make_loss("rkl"), DISTANCE_SIGMA
    teacher_NV = torch.stack([_mixture_V((-d / 2 * sigma, d / 2 * sigma), sigma) for d in distances]).repeat(2, 1)
    starts = [(0.0, sigma * (1 + d * d / 4) ** 0.5) for d in distances] + [(d / 2 * sigma, sigma) for d in distances]
    means_N1, sigmas_N1 = torch.tensor(starts, dtype=torch.float64).T[:, :, None]
    path = fit_gaussians(
        reverse, means_N1, sigmas_N1, teacher_NV,
        learning_rate=DISTANCE_RATE, num_steps=DISTANCE_STEPS, eps=DISTANCE_RATE,
    )  # fmt: skip
    values, count = nats(reverse, path, teacher_NV), len(distances)
    found = []
    for i, distance in enumerate(distances):
        still = stillness(reverse, *path.gaussian(i), teacher_NV[i])
        on_mode = path.gaussian(count + i)[0] / sigma
        found.append(Separation(distance, values[i], values[count + i], on_mode, *still))
    return found


def _mixture_V(means: Sequence[float], sigma: float) -> Tensor:
    """Logits of the mixture of equal shares."""
    means_1K = torch.tensor([list(means)], dtype=torch.float64)
    return log_density_NV(means_1K, torch.full_like(means_1K, sigma), torch.full_like(means_1K, 1 / len(means)))[0]


def _one_start_a_state(ends: Sequence[End], middle_sigma: float) -> list[int]:
    """Rows of the grid, one for each place where reverse KL ended, from a start of the middle sigma if there is one."""
    reverse = [end for end in ends if end.loss == "RKL"]
    chosen = []
    for state in ("left mode", "both modes", "right mode", "neither"):
        rows = [row for row, end in enumerate(reverse) if end.state == state]
        rows = [row for row in rows if reverse[row].start_sigma == middle_sigma] or rows
        if rows:
            # the last start of the left mode and the first of the others: neighbours of another end
            chosen.append(rows[-1] if state == "left mode" else rows[len(rows) // 2 if state == "both modes" else 0])
    return chosen
