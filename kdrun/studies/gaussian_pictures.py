"""Pictures of the Gaussians: the densities, the fit step by step, the ends against the starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from kdrun.studies.contenders import Contender
from kdrun.studies.gaussian_claims import End, Pair, Separation
from kdrun.studies.gaussian_fits import REACH, Path, density_V, points_V
from kdrun.studies.pictures import Animation, Curve, Panel, Picture

Grid = Sequence[tuple[float, float]]  # (sigma, mean or half gap) of the starts
FRAMES = 48
LINE = {"x_label": "x", "y_label": "density (1 / unit of x)", "x_limits": (-REACH, REACH)}


def densities_picture(
    named: Sequence[Contender], singles: Mapping[str, Path], teacher_V: Tensor, grid: Grid, shown: Sequence[int]
) -> Picture:
    """Where one Gaussian ends, a panel a start."""
    panels = [
        _densities(f"Started at mean {grid[row][1]:g}, sigma {grid[row][0]:g}", named, singles, teacher_V, -1, row)
        for row in shown
    ]
    return Picture(
        "one_gaussian", "One Gaussian fitted to two: the ends, from one start for each end of reverse KL",
        _same_height(panels), columns=3,
    )  # fmt: skip


def steps_picture(
    named: Sequence[Contender],
    singles: Mapping[str, Path],
    couples: Mapping[str, Path],
    teacher_V: Tensor,
    grid: Grid,
    gaps: Grid,
    rows: tuple[int, int],
) -> Picture:
    """Four moments of the fit of one Gaussian and of two; rows: the start of each."""
    last = len(next(iter(singles.values())).tvd_SN) - 1
    steps = [round(last * share) for share in (0, 1 / 30, 1 / 10, 1)]
    one = [_densities(f"One Gaussian, {step} steps", named, singles, teacher_V, step, rows[0]) for step in steps]
    two = [_densities(f"Two Gaussians, {step} steps", named, couples, teacher_V, step, rows[1]) for step in steps]
    return Picture(
        "steps",
        f"The fit step by step: one Gaussian from mean {grid[rows[0]][1]:g}, two from +-{gaps[rows[1]][1]:g}",
        (*_same_height(one), *_same_height(two)),
        columns=4,
    )


def fit_animation(
    named: Sequence[Contender],
    singles: Mapping[str, Path],
    couples: Mapping[str, Path],
    teacher_V: Tensor,
    grid: Grid,
    gaps: Grid,
    rows: tuple[int, int],
) -> Animation:
    """The same fits in at most 48 frames, close together at the start."""
    last = len(next(iter(singles.values())).tvd_SN) - 1
    steps = sorted({round(last * (frame / (FRAMES - 1)) ** 2) for frame in range(FRAMES)})
    columns = [
        _same_height([_densities(words, named, paths, teacher_V, step, row) for step in steps])
        for words, paths, row in (
            (f"One Gaussian from mean {grid[rows[0]][1]:g}", singles, rows[0]),
            (f"Two Gaussians from +-{gaps[rows[1]][1]:g}", couples, rows[1]),
        )
    ]
    frames = [
        Picture(f"fit-{step}", f"Fitted to two modes: {step} steps", panels)
        for step, *panels in zip(steps, *columns, strict=True)
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
                )  # fmt: skip
            )
    return Picture(
        "starts", "Where one Gaussian ends, against where it starts", tuple(panels), columns=len(sigmas)
    )  # fmt: skip


def distance_picture(separations: Sequence[Separation], distance: float) -> Picture:
    """Reverse KL over both modes and on one, and the curvature of the former, against the distance of the modes."""
    at = [each.distance for each in separations]
    apart = [each for each in separations if each.two_places]
    here = (("this teacher", distance),)
    values = Panel(
        "Its value at its two places of rest", "distance of the modes (their sigmas)",
        "reverse KL (nats)",
        (
            Curve("resting over both modes", at, [each.nats_over_both for each in separations], look=0),
            Curve("resting on one mode", [each.distance for each in apart], [each.nats_on_mode for each in apart], look=1),
        ),
        marks=here,
    )  # fmt: skip
    curvature = Panel(
        "Its curvature over both modes", "distance of the modes (their sigmas)",
        "least eigenvalue (nats)",
        (Curve("resting over both modes", at, [each.curvature_over_both for each in separations], look=0),),
        y_limits=(min(0.0, *(1.1 * each.curvature_over_both for each in separations)),
                  max(1.1 * each.curvature_over_both for each in separations)),
        levels=(("no minimum below", 0.0),),
        marks=here,
    )  # fmt: skip
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
            )  # fmt: skip
        )
    return Picture(
        "two_gaussians", "Two Gaussians fitted to two: how long each loss takes, against the start",
        tuple(panels), columns=3,
    )  # fmt: skip


def _curve(contender: Contender, x: Sequence[float], y: Sequence[float], kind: str = "line") -> Curve:
    return Curve(contender.label, x, y, contender.look, kind="points" if kind == "points" else "line")


def _densities(
    title: str, named: Sequence[Contender], paths: Mapping[str, Path], teacher_V: Tensor, step: int, row: int
) -> Panel:
    x = points_V().tolist()
    curves = [Curve("teacher", x, density_V(teacher_V).tolist())]
    curves += [_curve(each, x, paths[each.label].density_V(step, row).tolist()) for each in named]
    return Panel(title, curves=tuple(curves), **LINE)  # type: ignore[arg-type]  # a dict of mixed values


def _same_height(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The panels with one scale of densities, so that eyes can compare them."""
    from dataclasses import replace

    top = 1.05 * max(max(curve.y) for panel in panels for curve in panel.curves)
    return tuple(replace(panel, y_limits=(0, top)) for panel in panels)
