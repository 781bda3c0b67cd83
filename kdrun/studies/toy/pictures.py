"""Pictures and animations of the toy distributions. Shapes: N starts, E epochs (updates done, from 0), V classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from kdrun.studies.contenders import Contender
from kdrun.studies.pictures import Animation, Curve, Panel, Picture
from kdrun.studies.toy.pace import Fitted, Pace, gaps
from kdrun.studies.toy.targets import Split, far_of, nearest_half

FRAMES = 32  # 0.2 s of drawing each
BAND = torch.tensor((0.1, 0.5, 0.9), dtype=torch.float64)  # quantiles of the starts: low, line, high


def modes_picture(named: Sequence[Contender], runs: Sequence[Fitted], epochs: Sequence[int]) -> Picture:
    """Figure 2: a row for each target, a column for each epoch."""
    panels = [scatter(named, run, epoch, f"{run.target.name}: epoch {epoch}") for run in runs for epoch in epochs]
    title = f"One and two modes: teacher and students (Adam, learning rate {runs[0].learning_rate:g})"
    return Picture("modes", title, panels, columns=len(epochs))


def tail_picture(named: Sequence[Contender], run: Fitted, epochs: Sequence[int], far: Split) -> Picture:
    """Figure 3: each epoch with all classes, and with its far tail enlarged."""
    top = _top(run)
    panels = [
        panel
        for epoch in epochs
        for panel in (
            scatter(named, run, epoch, f"epoch {epoch}: all classes", y_limits=(-0.02 * top, top)),
            scatter(named, run, epoch, f"epoch {epoch}: far tail, enlarged", from_class=far.num_head),
        )
    ]
    title = f"{run.target.name}: teacher and students (Adam, learning rate {run.learning_rate:g})"
    return Picture("tail", title, panels)


def scatter(
    named: Sequence[Contender], run: Fitted, epoch: int, title: str, *, from_class: int = 0,
    y_limits: tuple[float, float] | None = None, log_y: bool = False,
) -> Panel:  # fmt: skip
    """The teacher as a line, and as points the student of every loss that began at the first start."""
    places = run.target.x_V[from_class:].tolist()
    students = (
        Curve(loss.label, places, run.q_ENV[loss.label][epoch, 0, from_class:].tolist(), loss.look, "points")
        for loss in named
    )
    teacher = Curve("teacher", places, run.target.p_V[from_class:].tolist())
    return Panel(title, run.target.x_label, "probability", (*students, teacher), log_y=log_y, y_limits=y_limits)


def errors_picture(named: Sequence[Contender], run: Fitted, cuts: Sequence[Split]) -> Picture:
    """Errors on the head, the tail, the far tail and everything, over time."""
    far, shown = far_of(cuts), nearest_half(cuts)
    epochs = spread_epochs(len(next(iter(run.q_ENV.values()))) - 1, 120)[1:]
    curves: dict[str, list[Curve]] = {}
    for loss in named:
        q_ENV = run.q_ENV[loss.label][epochs]
        head_ENS, tail_ENS = gaps(q_ENV, run.target.p_V, torch.stack((shown.head_V, far.head_V)))
        errors = {
            f"head: {shown.num_head} classes (split {shown.label})": head_ENS[..., 0],
            f"tail: the other {len(shown.head_V) - shown.num_head} classes": tail_ENS[..., 0],
            f"far tail: from {far.label} on": tail_ENS[..., 1],
            "all classes": head_ENS[..., 0] + tail_ENS[..., 0],
        }
        for title, error_EN in errors.items():
            low, middle, high = error_EN.quantile(BAND, dim=1).tolist()
            curves.setdefault(title, []).append(Curve(loss.label, epochs, middle, loss.look, band=(low, high)))
    title = f"Error over time: median of {len(run.target.starts_NV)} starts, band from 10th to 90th percentile"
    panels = [
        Panel(words, "epoch", "error: sum of |p - q|", lines, log_x=True, log_y=True) for words, lines in curves.items()
    ]
    return Picture("errors", title, panels)


def ahead_picture(
    cuts: Sequence[Split], paces: Mapping[float, Mapping[str, Pace]], rate: float, epochs: Sequence[int]
) -> Picture:
    """The errors of FKL and RKL against each other for every number of classes in the head."""

    def early(part: str, over: str, under: str) -> Panel:
        ratio_BNS = paces[rate][over].early_BNS[part] / paces[rate][under].early_BNS[part]
        lines = [(f"epoch {epoch}", b, ratio_BNS[b]) for b, epoch in enumerate(epochs)]
        return _against_classes(f"error on the {part}", f"{over} / {under}", lines, cuts)

    def half(part: str, over: str, under: str) -> Panel:
        lines = [
            (f"learning rate {other:g}", look, of[over].half_NS[part] / of[under].half_NS[part])
            for look, (other, of) in enumerate(paces.items(), len(epochs))
        ]
        return _against_classes(f"epochs to half of the {part}'s error", f"{over} / {under}", lines, cuts)

    sides = (("head", "FKL", "RKL"), ("tail", "RKL", "FKL"))
    title = "Below 1: FKL is ahead on the head (left), RKL on the tail (right)"
    return Picture("ahead", title, [panel(*side) for panel in (early, half) for side in sides])


def own_picture(named: Sequence[Contender], cuts: Sequence[Split], paces: Mapping[str, Pace]) -> Picture:
    """The epochs that each loss takes to half of its errors, for every number of classes in the head."""
    halves = [(loss, paces[loss.label].half_NS) for loss in named]
    ratios = [(loss.label, loss.look, half_NS["head"] / half_NS["tail"]) for loss, half_NS in halves]
    tails = [(loss.label, loss.look, half_NS["tail"]) for loss, half_NS in halves]
    panels = (
        _against_classes("epochs to half of the error", "head / tail", ratios, cuts),
        _against_classes("epochs to half of the tail's error", "epochs", tails, cuts, level=False),
    )
    return Picture("own", "Each loss by itself: below 1 (left) its head is fitted before its tail", panels)


def _against_classes(
    title: str, y_label: str, lines: Sequence[tuple[str, int, Tensor]], cuts: Sequence[Split], *, level: bool = True
) -> Panel:
    """Medians of the starts, lines: (label, look, value_NS), nan, and so not drawn, where they do not reach half of an
    error. Marked: the far tail, and the rule `paper` with as many mu as have room, those near 1/2 first."""
    at = [i for i, cut in enumerate(cuts) if cut.rule == "likeliest"]
    classes = [cuts[i].num_head for i in at]
    curves = []
    for label, look, value_NS in lines:
        median_S = value_NS[:, at].median(0).values
        curves.append(Curve(label, classes, median_S.where(median_S.isfinite(), torch.nan).tolist(), look))
    marks = {"far": far_of(cuts).num_head}
    for cut in sorted((cut for cut in cuts if cut.rule == "paper"), key=lambda cut: abs(cut.mu - 0.5)):
        if all(abs(cut.num_head - place) >= 12 for place in marks.values()):
            marks[f"{cut.mu:g}"] = cut.num_head
    drawn = [value for curve in curves for value in curve.y if isfinite(value)]
    top = 1.12 * max(drawn, default=1)  # room for the names of the marks
    return Panel(
        title, "classes in the head (dotted: mu, far tail)", y_label, curves,
        levels=[("", 1)] if level else (), marks=list(marks.items()), y_limits=(0, max(top, 1.12) if level else top),
    )  # fmt: skip


def animations(
    named: Sequence[Contender], on_modes: Fitted, on_tail: Fitted, *, last_epoch: int, far: Split
) -> list[Animation]:
    """The fit of two modes to its end; that of the half Gaussian to `last_epoch`, with its far tail."""
    num_steps = len(next(iter(on_modes.q_ENV.values()))) - 1
    top, tail_top = _top(on_modes), _top(on_tail)
    seen = torch.stack([q_ENV[: last_epoch + 1, 0, far.num_head :] for q_ENV in on_tail.q_ENV.values()])
    far_limits = (0.5 * float(seen.min()), 2 * float(seen.max()))
    modes = [
        Picture("modes", on_modes.target.name, (scatter(named, on_modes, epoch, f"epoch {epoch}", y_limits=(0, top)),))
        for epoch in spread_epochs(num_steps, FRAMES)
    ]
    tail = [
        Picture("tail", on_tail.target.name, (
            scatter(named, on_tail, epoch, f"epoch {epoch}: all classes", y_limits=(-0.02 * tail_top, tail_top)),
            scatter(named, on_tail, epoch, f"epoch {epoch}: far tail, log scale", from_class=far.num_head,
                    y_limits=far_limits, log_y=True),
        ))
        for epoch in spread_epochs(last_epoch, FRAMES)
    ]  # fmt: skip
    return [Animation("modes", modes), Animation("tail", tail)]


def _top(run: Fitted) -> float:
    """A limit above every probability that the first start's students ever have."""
    return 1.1 * max(float(run.target.p_V.max()), *(float(q_ENV[:, 0].max()) for q_ENV in run.q_ENV.values()))


def spread_epochs(last: int, most: int) -> list[int]:
    """At most `most` epochs from 0 to the last: the first half of them one by one, then ever wider apart."""
    first = min(last, most // 2)
    later = most - first - 1
    wide = [round(first * (last / first) ** (i / later)) for i in range(1, later + 1)]
    return sorted({*range(first + 1), *wide})
