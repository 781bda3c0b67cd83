"""The losses on two and on three classes: value, slope, and the step that gradient descent on the logits takes.

Shapes: N students, V classes (2 or 3). The teacher is fixed; the student goes over the simplex.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdrun.studies.contenders import Contender
from kdrun.studies.findings import listed
from kdrun.studies.losses.pairs import in_panels, logits, value_and_gradient
from kdrun.studies.pictures import Curve, Panel, Picture, Surface, on_simplex

EDGE = 0.01  # least probability in a triangle
FINE, COARSE = 40, 9  # points on a side: colours, arrows


def two_classes(entrants: Sequence[Contender], likely: Sequence[float]) -> Picture:
    """Value and dD/dz against q, one column for each probability of the teacher's first class."""
    q_N = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    student_logits_NV = torch.stack([q_N, 1 - q_N], dim=1).log()
    found = {p: {e.label: over(e, student_logits_NV, [p, 1 - p]) for e in entrants} for p in likely}
    panels = []
    for group in in_panels(entrants):
        for part, (words, unit) in enumerate((("value", "nats"), ("slope dD/dz", "nats a unit of its logit"))):
            for p in likely:
                limits = _range([found[p][e.label][part] for e in entrants])
                curves = [Curve(e.label, q_N.tolist(), found[p][e.label][part].tolist(), e.look) for e in group]
                panels.append(
                    Panel(
                        f"{words}, teacher p = {p:g}", "student's q of the likely class", unit, curves,
                        y_limits=limits, marks=[("", p)],
                    )
                )  # fmt: skip
    title = "Two classes: value of each loss and its slope in the likely class's logit"
    return Picture("two_classes", title, panels, columns=2 * len(likely))


def over(entrant: Contender, student_logits_NV: Tensor, teacher: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(nats_N, slope_N in the first class's logit) against one teacher."""
    teacher_logits_NV = logits(teacher).expand_as(student_logits_NV)
    nats_N, gradient_NV = value_and_gradient(entrant.loss(), student_logits_NV, teacher_logits_NV)
    return nats_N, gradient_NV[:, 0]


def _range(curves: Sequence[Tensor]) -> tuple[float, float]:
    """What the curves need without their steepest ends, with a margin."""
    ends = torch.stack([curve.quantile(torch.tensor([0.03, 0.97], dtype=curve.dtype)) for curve in curves])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def triangles(entrants: Sequence[Contender], teacher: Sequence[float]) -> Picture:
    """One triangle a loss: value as colour, and as arrows where a small step against the logit gradient moves q."""
    panels = [triangle(entrant, teacher) for entrant in entrants]
    title = (
        f"Three classes, teacher ({listed(teacher)}): value of each loss over the student's "
        "distributions; arrows: direction in which a small step against the logit gradient moves the student"
    )
    return Picture("three_classes", title, panels, columns=min(5, len(panels)))


def triangle(entrant: Contender, teacher: Sequence[float]) -> Panel:
    """One loss over the student's distributions. Colours end at the 95% quantile; arrows have one length."""
    teacher_logits_V = logits(teacher)
    q_NV, far_NV = grid(FINE, EDGE), grid(COARSE, 0.04)
    nats_N, _ = value_and_gradient(entrant.loss(), q_NV.log(), teacher_logits_V.expand_as(q_NV))
    _, gradient_NV = value_and_gradient(entrant.loss(), far_NV.log(), teacher_logits_V.expand_as(far_NV))
    limits = (0.0, float(nats_N.quantile(0.95)))
    surface = Surface(*places(q_NV), nats_N.tolist(), "nats", limits, arrows(far_NV, gradient_NV))
    return on_triangle(entrant.label, surface, "teacher", teacher)


def on_triangle(title: str, surface: Surface, label: str, point: Sequence[float]) -> Panel:
    """A triangle with one distribution marked."""
    x, y = on_simplex(*point)
    return Panel(title, surface=surface, curves=[Curve(label, [x], [y], 1, kind="points")])


def grid(side: int, edge: float) -> Tensor:
    """Distributions over three classes [N, 3], `side` points along an edge, every probability >= `edge`."""
    steps = [(i, j, side - 1 - i - j) for i in range(side) for j in range(side - i)]
    return edge + (1 - 3 * edge) * torch.tensor(steps, dtype=torch.float64) / (side - 1)


def moved(q_NV: Tensor, gradient_NV: Tensor) -> Tensor:
    """dq_NV of a small step of the logits against their gradient: dz = -gradient, dq = q (dz - sum(q dz))."""
    return q_NV * (-gradient_NV + (q_NV * gradient_NV).sum(-1, keepdim=True))


def arrows(q_NV: Tensor, gradient_NV: Tensor) -> list[tuple[float, float, float, float]]:
    """(x, y, dx, dy) in the triangle, all of one length; none where the student does not move."""
    found = []
    for q_V, step_V in zip(q_NV.tolist(), moved(q_NV, gradient_NV).tolist(), strict=True):
        dx, dy = step_V[1] + step_V[2] / 2, 3**0.5 / 2 * step_V[2]
        length = (dx * dx + dy * dy) ** 0.5
        if length > 1e-12:
            found.append((*on_simplex(*q_V), dx / length, dy / length))
    return found


def places(q_NV: Tensor) -> tuple[list[float], list[float]]:
    """x and y of each distribution in the triangle."""
    x, y = zip(*(on_simplex(*q) for q in q_NV.tolist()), strict=True)
    return list(x), list(y)
