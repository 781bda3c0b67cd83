"""AKL and the other losses whose training gradient is not the slope of their value.

AKL's weight a is the head's share of the gap, taken as a constant. Shapes: N pairs, V classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdrun.losses import Loss, make_loss
from kdrun.losses.akl import Akl
from kdrun.losses.head import HEAD_RULES
from kdrun.studies.contenders import Contender, label_of
from kdrun.studies.findings import Claim, Table, holds, holds_in, listed
from kdrun.studies.losses.pairs import Pair, logits, value_and_gradient
from kdrun.studies.losses.simplex import EDGE, grid, on_triangle, places
from kdrun.studies.pictures import Curve, Panel, Picture, Surface

NUM_CLASSES = 6  # of the slopes by finite differences
SIDE = 60  # points on a side of a triangle
STEP = 1e-5  # of those differences; their own error is about 1e-10
SYMMETRIC = 1e-6
AT_THE_END = 0.01  # how far a mean weight may be from 0 or 1


def forward_weight(pair: Pair, *, mu: float, head: str = "code") -> Tensor:
    """AKL's weight of forward KL for each pair [N] of logits (student, teacher)."""
    log_q_NV, log_p_NV = (torch.log_softmax(x, dim=-1) for x in pair)
    return Akl(mu=mu, head=head).forward_weight(log_q_NV, log_p_NV)


def two_class_claim() -> Claim:
    """AKL on two classes is the half-and-half mix."""
    p_M = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    p_N, q_N = (x.reshape(-1) for x in torch.meshgrid(p_M, p_M + 0.007, indexing="ij"))
    pair = (torch.stack([q_N, 1 - q_N], 1).log(), torch.stack([p_N, 1 - p_N], 1).log())
    away = max(float((forward_weight(pair, mu=mu) - 0.5).abs().max()) for mu in (0.1, 0.5, 0.9))
    return Claim(
        "akl-two-classes",
        "On two classes AKL cannot adapt: one class is head, the other tail, their gaps are equal, so a = 1/2.",
        "AKL paper, arXiv 2404.02657, definition of the gaps; probabilities sum to 1 (head by the rule of its code)",
        f"largest abs(a - 1/2) {away:.1e} over {len(p_N):,} pairs and mu 0.1, 0.5, 0.9",
        "at most 1e-10",
        holds(away <= 1e-10),
        proven=True,
    )


def mu_claims(pair: Pair) -> Iterator[Claim]:
    """What AKL becomes at the ends of mu, for each reading of the head."""
    for mu, key, words, target in (
        (1e-9, "zero", "As mu -> 0 the head empties and AKL becomes reverse KL (a -> 0).", 0.0),
        (1 - 1e-9, "one", "As mu -> 1 the head takes all and AKL becomes forward KL (a -> 1).", 1.0),
    ):
        means = {rule: float(forward_weight(pair, mu=mu, head=rule).mean()) for rule in HEAD_RULES}
        there = [rule for rule, mean in means.items() if abs(mean - target) <= AT_THE_END]
        figures = "; ".join(f"head={rule}: mean a {mean:.3f}" for rule, mean in means.items())
        yield Claim(
            f"akl-mu-{key}",
            words,
            "AKL paper, arXiv 2404.02657, mu as the border of head and tail, taken to its end",
            f"at mu = {mu!r}, {len(pair[0])} pairs: {figures}",
            f"abs(mean a - {target:g}) at most {AT_THE_END:g}",
            *holds_in(len(there), len(means), where=f"the head is read as {' or '.join(there)}"),
        )


def akl_nats(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """AKL's value nats_N."""
    return value_and_gradient(Akl(), student_logits_NV, teacher_logits_NV)[0]


def jump_claim(teacher: Sequence[float]) -> Claim:
    """Whether AKL is continuous in the student and in the teacher, on three classes."""
    sizes = (1e-3, 1e-6, 1e-9)
    in_teacher, in_student = [], []
    student_V, points_NV = logits(teacher[::-1]), grid(SIDE, EDGE).log()
    teacher_NV = logits(teacher).expand_as(points_NV)
    step_NV = torch.randn(points_NV.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before_N = akl_nats(points_NV, teacher_NV)
    for size in sizes:
        sides_NV = logits(teacher_walk(teacher, (0.5 - size, 0.5 + size)))  # the two likeliest change places
        in_teacher.append(float(akl_nats(student_V.expand_as(sides_NV), sides_NV).diff().abs()))
        in_student.append(float((akl_nats(points_NV + size * step_NV, teacher_NV) - before_N).abs().max()))
    fades = [changes[-1] <= 1e-6 for changes in (in_student, in_teacher)]
    only_there = fades == [True, False]
    return Claim(
        "akl-continuous",
        "AKL changes a little when a distribution changes a little.",
        "implied by AKL paper, arXiv 2404.02657, which cuts the head from the sorted teacher",
        f"largest change of the value under changes of {listed(sizes)}: student "
        f"{listed(in_student, '.1e')} nats; teacher, where its two likeliest classes change places, "
        f"{listed(in_teacher, '.1e')} nats",
        f"changes at {sizes[-1]:g} at most 1e-6 nats",
        "holds only when" if only_there else holds(all(fades)),
        condition="the teacher stays as it is" if only_there else "",
    )


def teacher_walk(teacher: Sequence[float], shares: Sequence[float]) -> list[list[float]]:
    """Distributions on the way along which the first two classes swap their probabilities."""
    first, second, third = teacher
    return [[first + s * (second - first), second + s * (first - second), third] for s in shares]


def field_table(entrants: Sequence[Contender], *, seed: int) -> Table:
    """One row a loss: is its training gradient the slope of its value, and of any function at all.

    off_slope: size of (gradient - slope of the value) over that of the slope; asymmetry: of the gradient's Jacobian,
    |J - J'| / |J|, 0 for the slope of a function. Medians over 16 pairs, by central differences.
    """
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = torch.randn(2, 16, NUM_CLASSES, generator=generator, dtype=torch.float64)
    rows = []
    for entrant in entrants:
        off, asymmetry = (float(size_N.median()) for size_N in field(entrant.loss(), student_NV, teacher_NV))
        rows.append({"loss": entrant.label, "off_slope": off, "asymmetry": asymmetry})
    return rows


def field(loss: Loss, student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(off_slope_N, asymmetry_N), see `field_table`."""

    def at(shift_V: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(loss, student_logits_NV + shift_V, teacher_logits_NV)

    gradient_NV = at(torch.zeros(student_logits_NV.shape[1], dtype=torch.float64))[1]
    sides = [(at(shift_V), at(-shift_V)) for shift_V in STEP * torch.eye(student_logits_NV.shape[1]).double()]
    slope_NV = torch.stack([(ahead[0] - behind[0]) / (2 * STEP) for ahead, behind in sides], dim=-1)
    jacobian_NVV = torch.stack([(ahead[1] - behind[1]) / (2 * STEP) for ahead, behind in sides], dim=-1)
    skew_NVV = jacobian_NVV - jacobian_NVV.transpose(1, 2)
    off_N = (gradient_NV - slope_NV).norm(dim=-1) / slope_NV.norm(dim=-1)
    return off_N, skew_NVV.flatten(1).norm(dim=-1) / jacobian_NVV.flatten(1).norm(dim=-1)


def field_claim(rows: Table) -> Claim:
    """Whether constant weights leave a loss that descends something."""
    curled = [row for row in rows if row["asymmetry"] > SYMMETRIC]
    asymmetries = ", ".join(f"{row['loss']} {row['asymmetry']:.2g}" for row in curled) or "none"
    off = [f"{row['loss']} {row['off_slope']:.2f}" for row in rows if row["off_slope"] > SYMMETRIC]
    return Claim(
        "descends-a-function",
        "A loss's training gradient is the slope of some function, so that training goes down somewhere.",
        "implied by gradient descent; AKL (arXiv 2404.02657) and TAID (arXiv 2501.16937) hold weights or targets fixed",
        f"asymmetry of the gradient's Jacobian: {asymmetries}, others below {SYMMETRIC:g}; "
        f"gradient off the slope of the printed value (relative): {', '.join(off) or 'none'}",
        f"median of |J - J'| / |J| at most {SYMMETRIC:g} on pairs of {NUM_CLASSES} classes",
        *holds_in(
            len(rows) - len(curled), len(rows), where=f"the loss is not {' or '.join(r['loss'] for r in curled)}"
        ),
    )


def akl_picture(pair: Pair, teacher: Sequence[float]) -> Picture:
    """Weight a over students, over teachers, across a jump, and against mu."""
    shares = [i / 200 for i in range(201)]
    walk_NV = logits(teacher_walk(teacher, shares))
    student_NV = logits(teacher[::-1]).expand_as(walk_NV)
    mus = [0.001, 0.005, *(i / 50 for i in range(1, 50)), 0.995, 0.999]
    lines = [
        Curve(label_of(name), shares, value_and_gradient(make_loss(name), student_NV, walk_NV)[0].tolist(), look)
        for look, name in enumerate(("fkl", "rkl", "fkl_rkl", "akl"))
    ]
    rules = [
        Curve(f"head={rule}", mus, [float(forward_weight(pair, mu=mu, head=rule).mean()) for mu in mus], 4 + i)
        for i, rule in enumerate(HEAD_RULES)
    ]
    points_NV = grid(SIDE, EDGE)
    over_NV, fixed_NV = points_NV.log(), logits(teacher).expand_as(points_NV)
    triangles = []
    for title, pair_NV in (
        ("over students, the teacher fixed", (over_NV, fixed_NV)),
        ("over teachers, the student fixed", (fixed_NV, over_NV)),
    ):
        weights = forward_weight(pair_NV, mu=0.5).tolist()
        surface = Surface(*places(points_NV), weights, "weight a (mu = 0.5)", (0.0, 0.5))
        triangles.append(on_triangle(title, surface, "the fixed one", teacher))
    return Picture(
        "akl",
        f"AKL's weight a of forward KL, and where it jumps; fixed: ({listed(teacher)})",
        [
            *triangles,
            Panel("two classes of the teacher swap: a jump", "share of the swap", "nats", lines),
            Panel(f"against mu, mean of {len(pair[0])} pairs", "mu", "weight a", rules, y_limits=(-0.03, 1.03)),
        ],
    )
