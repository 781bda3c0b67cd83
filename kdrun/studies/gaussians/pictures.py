"""Pictures of the Gaussians: the densities, the fit step by step, the ends against the starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    panels = [
        _densities(
            fits, f"Started at mean {fits.grid[row][1]:g}, sigma {fits.grid[row][0]:g}", paths=fits.singles, row=row
        )
        for row in rows
    ]
    title = "One Gaussian fitted to two: where it ends, from a start for each end of reverse KL"
    return Picture("one_gaussian", title, _same_height(panels), columns=3)


def steps_picture(fits: Fits) -> Picture:
    """Four moments of the fit of one Gaussian and of two."""
    steps = [round(fits.num_steps * share) for share in (0, 1 / 30, 1 / 10, 1)]
    mean, half_gap = fits.grid[fits.one][1], fits.gaps[fits.two][1]
    title = f"The fit step by step: one Gaussian from mean {mean:g}, two from +-{half_gap:g}"
    one, two = _columns(fits, steps, ("One Gaussian, {} steps", "Two Gaussians, {} steps"))
    return Picture("steps", title, (*one, *two), columns=4)


def fit_animation(fits: Fits) -> Animation:
    """The same fits in at most 48 frames, close together at the start."""
    steps = sorted({round(fits.num_steps * (frame / (FRAMES - 1)) ** 2) for frame in range(FRAMES)})
    words = (f"One Gaussian from mean {fits.grid[fits.one][1]:g}", f"Two Gaussians from +-{fits.gaps[fits.two][1]:g}")
    frames = [
        Picture(f"fit-{step}", f"Fitted to two modes: {step} steps", panels)
        for step, panels in zip(steps, zip(*_columns(fits, steps, words), strict=True), strict=True)
    ]
    return Animation("fit", tuple(frames))


def starts_picture(named: Sequence[Contender], ends: Sequence[End]) -> Picture:
    """The end's mean and its loss against the start's mean, a column for each sigma of the starts."""
    sigmas = sorted({end.start_sigma for end in ends})
    panels = []
    for what in ("mean", "nats"):
        values = [getattr(end, what) for end in ends]
        margin = 0.08 * (max(values) - min(values)) + 1e-3
        for sigma in sigmas:
            curves = []
            for contender in named:
                rows = [end for end in ends if (end.loss, end.start_sigma) == (contender.label, sigma)]
                rows.sort(key=lambda end: end.start_mean)
                curves.append(
                    _curve(contender, [r.start_mean for r in rows], [getattr(r, what) for r in rows], "points")
                )
            panels.append(
                Panel(
                    f"Starts of sigma {sigma:g}",
                    "mean at the start",
                    "mean at the end" if what == "mean" else "loss at the end (nats)",
                    tuple(curves),
                    y_limits=(min(values) - margin, max(values) + margin),
                )
            )
    return Picture("starts", "Where one Gaussian ends, against where it starts", tuple(panels), columns=len(sigmas))


def distance_picture(separations: Sequence[Separation], distance: float) -> Picture:
    """Reverse KL over both modes and on one, and the curvature of the former, against the distance of the modes."""
    at = [each.distance for each in separations]
    apart = [each for each in separations if each.two_places]
    here = (("this teacher", distance),)
    values = Panel(
        "Its value at its two places of rest",
        "distance of the modes (their sigmas)",
        "reverse KL (nats)",
        (
            Curve("resting over both modes", at, [each.nats_over_both for each in separations], look=0),
            Curve("resting on one mode", [e.distance for e in apart], [e.nats_on_mode for e in apart], look=1),
        ),
        marks=here,
    )
    curvature = Panel(
        "Its curvature over both modes",
        "distance of the modes (their sigmas)",
        "least eigenvalue (nats)",
        (Curve("resting over both modes", at, [each.curvature_over_both for each in separations], look=0),),
        y_limits=(
            min(0.0, *(1.1 * each.curvature_over_both for each in separations)),
            max(1.1 * each.curvature_over_both for each in separations),
        ),
        levels=(("no minimum below", 0.0),),
        marks=here,
    )
    return Picture("distance", "Where reverse KL lets one Gaussian rest", (values, curvature))


def pairs_picture(named: Sequence[Contender], pairs: Sequence[Pair], near: float) -> Picture:
    """Steps until two Gaussians fit, against how far apart they start, a panel for each sigma of the starts."""
    reached = [pair.steps for pair in pairs if pair.steps < float("inf")]
    limits = (0.8 * max(min(reached, default=1), 1), 1.25 * max(reached, default=10))
    panels = []
    for sigma in sorted({pair.start_sigma for pair in pairs}):
        curves = []
        for contender in named:
            rows = [pair for pair in pairs if (pair.loss, pair.start_sigma) == (contender.label, sigma)]
            rows = sorted((pair for pair in rows if pair.steps < float("inf")), key=lambda pair: pair.start_half_gap)
            curves.append(_curve(contender, [pair.start_half_gap for pair in rows], [pair.steps for pair in rows]))
        panels.append(
            Panel(
                f"Starts of sigma {sigma:g}",
                "half gap of the means at the start",
                f"steps until TV < {near:g}",
                tuple(curves),
                log_y=True,
                y_limits=limits,
            )
        )
    return Picture(
        "two_gaussians",
        "Two Gaussians fitted to two: how long each loss takes, against the start",
        tuple(panels),
        columns=3,
    )


def _curve(contender: Contender, x: Sequence[float], y: Sequence[float], kind: str = "line") -> Curve:
    return Curve(contender.label, x, y, contender.look, kind="points" if kind == "points" else "line")


def _columns(fits: Fits, steps: Sequence[int], titles: tuple[str, str]) -> list[tuple[Panel, ...]]:
    return [
        _same_height([_densities(fits, title.format(step), paths=paths, row=row, step=step) for step in steps])
        for title, paths, row in zip(titles, (fits.singles, fits.couples), (fits.one, fits.two), strict=True)
    ]


def _densities(fits: Fits, title: str, *, paths: Mapping[str, Path], row: int, step: int = -1) -> Panel:
    x = points_V().tolist()
    curves = [Curve("teacher", x, density_V(fits.teacher_V).tolist())]
    curves += [_curve(each, x, paths[each.label].density_V(step, row).tolist()) for each in fits.named]
    return Panel(title, "x", "density (1 / unit of x)", tuple(curves), x_limits=(-REACH, REACH))


def _same_height(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The panels with one scale of densities, so that eyes can compare them."""
    top = 1.05 * max(max(curve.y) for panel in panels for curve in panel.curves)
    return tuple(replace(panel, y_limits=(0, top)) for panel in panels)
