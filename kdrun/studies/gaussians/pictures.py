"""Pictures of the Gaussians: the densities, the fit step by step, the ends against the starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from torch import Tensor

from kdrun.studies.contenders import Contender
from kdrun.studies.gaussians.claims import End, Pair, Separation
from kdrun.studies.gaussians.fits import REACH, Path, density_V, points_V
from kdrun.studies.pictures import Animation, Curve, Panel, Picture

Grid = Sequence[tuple[float, float]]  # (sigma, mean or half gap) of the starts
FRAMES = 48


@dataclass(frozen=True)
class Fits:
    """The fits of one and of two Gaussians, by the label of their loss, from the starts of two grids.

    one, two: the rows of the grids that are shown step by step.
    """

    named: Sequence[Contender]
    teacher_V: Tensor
    singles: Mapping[str, Path]
    couples: Mapping[str, Path]
    grid: Grid
    gaps: Grid
    one: int
    two: int

    @property
    def num_steps(self) -> int:
        """Updates from start to end."""
        return len(next(iter(self.singles.values())).tvd_SN) - 1


def densities_picture(fits: Fits, rows: Sequence[int]) -> Picture:
    """Where one Gaussian ends, a panel a start."""
    panels = []
    for row in rows:
        sigma, mean = fits.grid[row]
        panels.append(_densities(fits, f"Started at mean {mean:g}, sigma {sigma:g}", paths=fits.singles, row=row))
    title = "One Gaussian fitted to two: where it ends, from a start for each end of reverse KL"
    return Picture("one_gaussian", title, _same_height(panels), columns=3)


def steps_picture(fits: Fits) -> Picture:
    """Four moments of the fit of one Gaussian and of two."""
    steps = [round(fits.num_steps * share) for share in (0, 1 / 30, 1 / 10, 1)]
    mean, half_gap = fits.grid[fits.one][1], fits.gaps[fits.two][1]
    title = f"The fit step by step: one Gaussian from mean {mean:g}, two from +-{half_gap:g}"
    one, two = _columns(fits, steps, ("One Gaussian, {} steps", "Two Gaussians, {} steps"))
    return Picture("steps", title, [*one, *two], columns=4)


def fit_animation(fits: Fits) -> Animation:
    """The same fits in at most 48 frames, close together at the start."""
    steps = sorted({round(fits.num_steps * (frame / (FRAMES - 1)) ** 2) for frame in range(FRAMES)})
    words = (f"One Gaussian from mean {fits.grid[fits.one][1]:g}", f"Two Gaussians from +-{fits.gaps[fits.two][1]:g}")
    frames = [
        Picture(f"fit-{step}", f"Fitted to two modes: {step} steps", panels)
        for step, panels in zip(steps, zip(*_columns(fits, steps, words), strict=True), strict=True)
    ]
    return Animation("fit", frames)


def starts_picture(named: Sequence[Contender], ends: Sequence[End]) -> Picture:
    """The end's mean and its loss against the start's mean, a column for each sigma of the starts."""
    panels = []
    for what, y_label in (("mean", "mean at the end"), ("nats", "loss at the end (nats)")):
        values = [getattr(end, what) for end in ends]
        margin = 0.08 * (max(values) - min(values)) + 1e-3
        limits = (min(values) - margin, max(values) + margin)
        columns = _against_starts(named, ends, "start_mean", what, kind="points")
        panels += [
            Panel(title, "mean at the start", y_label, curves, y_limits=limits) for title, curves in columns.items()
        ]
    return Picture("starts", "Where one Gaussian ends, against where it starts", panels, columns=len(columns))


def distance_picture(separations: Sequence[Separation], distance: float) -> Picture:
    """Reverse KL over both modes and on one, and the curvature of the former, against the distance of the modes."""
    at = [each.distance for each in separations]
    apart = [each for each in separations if each.two_places]
    curvatures = [each.curvature_over_both for each in separations]
    over, on = "resting over both modes", "resting on one mode"
    x_label, here = "distance of the modes (their sigmas)", [("this teacher", distance)]
    values = (
        Curve(over, at, [each.nats_over_both for each in separations], look=0),
        Curve(on, [each.distance for each in apart], [each.nats_on_mode for each in apart], look=1),
    )
    panels = (
        Panel("Its value at its two places of rest", x_label, "reverse KL (nats)", values, marks=here),
        Panel(
            "Its curvature over both modes", x_label, "least eigenvalue (nats)", [Curve(over, at, curvatures, look=0)],
            y_limits=(min(0.0, 1.1 * min(curvatures)), 1.1 * max(curvatures)), levels=[("no minimum below", 0.0)],
            marks=here,
        ),
    )  # fmt: skip
    return Picture("distance", "Where reverse KL lets one Gaussian rest", panels)


def pairs_picture(named: Sequence[Contender], pairs: Sequence[Pair], near: float) -> Picture:
    """Steps until two Gaussians fit, against how far apart they start, a panel for each sigma of the starts."""
    reached = [pair.steps for pair in pairs if isfinite(pair.steps)]
    limits = (0.8 * max(min(reached, default=1), 1), 1.25 * max(reached, default=10))
    x_label, y_label = "half gap of the means at the start", f"steps until TV < {near:g}"
    panels = [
        Panel(title, x_label, y_label, curves, log_y=True, y_limits=limits)
        for title, curves in _against_starts(named, pairs, "start_half_gap", "steps").items()
    ]
    title = "Two Gaussians fitted to two: how long each loss takes, against the start"
    return Picture("two_gaussians", title, panels, columns=3)


def _against_starts(
    named: Sequence[Contender],
    rows: Sequence[End | Pair],
    place: str,
    value: str,
    *,
    kind: Literal["line", "points"] = "line",
) -> dict[str, list[Curve]]:
    """title -> curves of a field against the starts' place, a title for each sigma; values without end are left out."""
    found: dict[str, list[Curve]] = {}
    for sigma in sorted({row.start_sigma for row in rows}):
        for contender in named:
            own = [row for row in rows if (row.loss, row.start_sigma) == (contender.label, sigma)]
            own = [row for row in own if isfinite(getattr(row, value))]
            x, y = ([getattr(row, key) for row in own] for key in (place, value))
            curve = Curve(contender.label, x, y, contender.look, kind)
            found.setdefault(f"Starts of sigma {sigma:g}", []).append(curve)
    return found


def _columns(fits: Fits, steps: Sequence[int], titles: tuple[str, str]) -> list[list[Panel]]:
    return [
        _same_height([_densities(fits, title.format(step), paths=paths, row=row, step=step) for step in steps])
        for title, paths, row in zip(titles, (fits.singles, fits.couples), (fits.one, fits.two), strict=True)
    ]


def _densities(fits: Fits, title: str, *, paths: Mapping[str, Path], row: int, step: int = -1) -> Panel:
    x = points_V().tolist()
    curves = [Curve("teacher", x, density_V(fits.teacher_V).tolist())]
    curves += [Curve(each.label, x, paths[each.label].density_V(step, row).tolist(), each.look) for each in fits.named]
    return Panel(title, "x", "density (1 / unit of x)", curves, x_limits=(-REACH, REACH))


def _same_height(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with one scale of densities, so that eyes can compare them."""
    top = 1.05 * max(max(curve.y) for panel in panels for curve in panel.curves)
    return [replace(panel, y_limits=(0, top)) for panel in panels]
