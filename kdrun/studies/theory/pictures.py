"""The pictures of the study `theory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdrun.studies.contenders import label_of
from kdrun.studies.pictures import Curve, Panel, Picture
from kdrun.studies.theory.descent import Descent
from kdrun.studies.theory.smoothness import HESSIAN_CLASSES, TOTAL_GAP, GapDraw

Points = Mapping[int, Sequence[tuple[float, float]]]  # number of classes -> (bound, gradient norm)
LEAST_GAP = 1e-4  # smaller ones are left out of the picture
DRAWN_PAIRS = 400  # of a panel of correlations


def smoothness_picture(norms: Mapping[str, Mapping[float, float]]) -> Picture:
    """The Hessian norms against the teacher's logit scale."""
    curves = [
        Curve(label_of(name), list(at), list(at.values()), look=look) for look, (name, at) in enumerate(norms.items())
    ]
    panel = Panel(
        f"random pairs, {HESSIAN_CLASSES} classes", "standard deviation of the teacher's logits",
        "largest Hessian norm (nats)", curves, log_x=True, log_y=True,
        levels=[("1/2, bound of FKL", 0.5), ("1/8, most found of JSD", 0.125)],
    )  # fmt: skip
    return Picture("smoothness", "RKL curves more under sharp teachers", [panel], columns=1)


def bounds_picture(bounds: Mapping[str, Points]) -> Picture:
    """The gradient's norm against its bound, pair by pair, for forward and reverse KL."""
    names = {"fkl": "total gap, sum of abs(q - p)", "rkl": "sum of abs(g), g = q (log(q/p) - R) (nats)"}
    panels = []
    for name, points in bounds.items():
        kept = {classes: [point for point in seen if point[0] > LEAST_GAP] for classes, seen in points.items()}
        ends = [gap for seen in kept.values() for gap, _ in seen]
        line = [min(ends), max(ends)]
        curves = [
            Curve(f"{classes} classes", [gap for gap, _ in seen], [norm for _, norm in seen], look=look, kind="points")
            for look, (classes, seen) in enumerate(kept.items())
        ]
        curves.append(Curve("gradient = bound", line, line))
        panels.append(Panel(label_of(name), names[name], "norm of the gradient (nats)", curves, log_x=True, log_y=True))
    return Picture("gradient_bounds", "The gradient's norm is at most the gap (Lemmas 4.4 and 4.7)", panels)


def head_gap_picture(draws: Sequence[GapDraw]) -> Picture:
    """Gradient norm against the head gap, absolute and signed, for the two draws whose signed correlations are the
    furthest apart."""
    by_signed = sorted(draws, key=lambda draw: draw.correlations[1])
    shown = (by_signed[-1], by_signed[0])
    limits = {0: (0, TOTAL_GAP), 1: (-0.6 * TOTAL_GAP, 0.6 * TOTAL_GAP)}  # a signed gap is at most half the total
    top = 1.05 * max(float(draw.norm_N[:DRAWN_PAIRS].max()) for draw in shown)
    panels = []
    for draw in shown:
        readings = (
            ("head gap, sum of abs(q - p)", draw.head_gap_N, draw.correlations[0]),
            ("signed head gap, sum of q - p", draw.signed_gap_N, draw.correlations[1]),
        )
        for look, (label, gap_N, correlation) in enumerate(readings):
            points = Curve("", gap_N[:DRAWN_PAIRS].tolist(), draw.norm_N[:DRAWN_PAIRS].tolist(), look, kind="points")
            title = f"{draw.kind}: r = {correlation:+.2f}"
            y_label = "norm of FKL's gradient (nats)"
            panels.append(Panel(title, label, y_label, [points], x_limits=limits[look], y_limits=(0, top)))
    title = f"Total gap {TOTAL_GAP:g}: does more gap in the head mean a smaller gradient? (Lemma 4.5)"
    return Picture("head_gap", title, panels)


def theorem_picture(descents: Sequence[Descent]) -> Picture:
    """The mean squared gradient of the first T steps and its bound against T."""
    top = 1.05 * max(float(descent.bound_T.max()) for descent in descents)
    panels = []
    for descent in descents:
        steps = list(range(1, len(descent.bound_T) + 1))
        curves = (
            Curve("mean squared gradient of the first T steps", steps, descent.mean_square_T.tolist(), look=0),
            Curve("bound", steps, descent.bound_T.tolist()),
        )
        title, label = f"step size {descent.step_size:g}", "squared norm (nats^2)"
        panels.append(Panel(title, "steps T", label, curves, log_x=True, y_limits=(0, top)))
    return Picture("theorem_4_1", "SGD on forward KL stays under its bound (Theorem 4.1)", panels, columns=3)
