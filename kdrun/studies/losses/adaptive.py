"""AKL and the other losses whose training gradient is not the slope of their value.

AKL's weight a is the head's share of the gap, taken as a constant. Shapes: N pairs, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdrun.losses import Loss, make_loss
from kdrun.losses.akl import Akl
from kdrun.losses.head import HEAD_RULES
from kdrun.studies.contenders import Contender, label_of
from kdrun.studies.findings import Claim, Table, holds
from kdrun.studies.losses.pairs import value_and_gradient
from kdrun.studies.losses.simplex import CLASSES, EDGE, grid, places
from kdrun.studies.pictures import Curve, Panel, Picture, Surface, on_simplex

NUM_CLASSES = 6  # of the slopes by finite differences
SIDE = 60  # points on a side of a triangle
STEP = 1e-5  # of those differences; their own error is about 1e-10
SYMMETRIC = 1e-6
MU_ENDS = (1e-9, 1 - 1e-9)
AT_THE_END = 0.01  # how far a mean weight may be from 0 or 1


def forward_weight(pair: tuple[Tensor, Tensor], *, mu: float, head: str = "code") -> Tensor:
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


def mu_claims(pair: tuple[Tensor, Tensor]) -> list[Claim]:
    """What AKL becomes at the ends of mu, for each reading of the head."""
    ends = {rule: [forward_weight(pair, mu=mu, head=rule) for mu in MU_ENDS] for rule in HEAD_RULES}
    claims = []
    for place, key, words, target in (
        (0, "zero", "As mu -> 0 the head empties and AKL becomes reverse KL (a -> 0).", 0.0),
        (1, "one", "As mu -> 1 the head takes all and AKL becomes forward KL (a -> 1).", 1.0),
    ):
        means = {rule: float(weights[place].mean()) for rule, weights in ends.items()}
        there = [rule for rule, mean in means.items() if abs(mean - target) <= AT_THE_END]
        verdict = "contradicted" if not there else "holds" if len(there) == len(means) else "holds only when"
        figures = "; ".join(f"head={rule}: mean a {mean:.3f}" for rule, mean in means.items())
        claims.append(
            Claim(
                f"akl-mu-{key}",
                words,
                "AKL paper, arXiv 2404.02657, mu as the border of head and tail, taken to its end",
                f"at mu = {MU_ENDS[place]!r}, {len(pair[0])} pairs: {figures}",
                f"abs(mean a - {target:g}) at most {AT_THE_END:g}",
                verdict,  # type: ignore[arg-type]  # mypy does not join the words
                condition=f"the head is read as {' or '.join(there)}" if verdict == "holds only when" else "",
            )
        )
    return claims


def jump_claim(teacher: Sequence[float]) -> Claim:
    """Whether AKL is continuous in the student and in the teacher, on three classes."""
    loss, student_logits_V = Akl(), torch.tensor(teacher[::-1], dtype=torch.float64).log()
    sizes = (1e-3, 1e-6, 1e-9)
    in_teacher = []
    for size in sizes:  # the two likeliest change places
        sides_NV = torch.tensor(teacher_walk(teacher, (0.5 - size, 0.5 + size)), dtype=torch.float64).log()
        nats_N, _ = value_and_gradient(loss, student_logits_V.expand_as(sides_NV), sides_NV)
        in_teacher.append(float((nats_N[1] - nats_N[0]).abs()))
    q_NV = grid(SIDE, EDGE)
    teacher_NV = torch.tensor(teacher, dtype=torch.float64).log().expand_as(q_NV)
    step_NV = torch.randn(q_NV.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before_N, _ = value_and_gradient(loss, q_NV.log(), teacher_NV)
    in_student = [
        float((value_and_gradient(loss, q_NV.log() + size * step_NV, teacher_NV)[0] - before_N).abs().max())
        for size in sizes
    ]
    fades = [changes[-1] <= 1e-6 for changes in (in_student, in_teacher)]
    verdict = "holds" if all(fades) else "holds only when" if fades[0] else "contradicted"
    return Claim(
        "akl-continuous",
        "AKL changes a little when a distribution changes a little.",
        "implied by AKL paper, arXiv 2404.02657, which cuts the head from the sorted teacher",
        f"largest change of the value under changes of {', '.join(f'{s:g}' for s in sizes)}: student "
        f"{', '.join(f'{x:.1e}' for x in in_student)} nats; teacher, where its two likeliest classes change places, "
        f"{', '.join(f'{x:.1e}' for x in in_teacher)} nats",
        f"changes at {sizes[-1]:g} at most 1e-6 nats",
        verdict,  # type: ignore[arg-type]
        condition="the teacher stays as it is" if verdict == "holds only when" else "",
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
        off_N, asymmetry_N = field(entrant.loss(), student_NV, teacher_NV)
        rows.append(
            {"loss": entrant.label, "off_slope": float(off_N.median()), "asymmetry": float(asymmetry_N.median())}
        )
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
    verdict = holds(not curled) if len(curled) in (0, len(rows)) else "holds only when"
    off = [f"{row['loss']} {row['off_slope']:.2f}" for row in rows if row["off_slope"] > SYMMETRIC]
    return Claim(
        "descends-a-function",
        "A loss's training gradient is the slope of some function, so that training goes down somewhere.",
        "implied by gradient descent; AKL (arXiv 2404.02657) and TAID (arXiv 2501.16937) hold weights or targets fixed",
        f"asymmetry of the gradient's Jacobian: {_figures(curled, 'asymmetry')}, others below {SYMMETRIC:g}; "
        f"gradient off the slope of the printed value (relative): {', '.join(off) or 'none'}",
        f"median of |J - J'| / |J| at most {SYMMETRIC:g} on pairs of {NUM_CLASSES} classes",
        verdict,
        condition=f"the loss is not {_labels(curled)}" if verdict == "holds only when" else "",
    )


def akl_picture(pair: tuple[Tensor, Tensor], teacher: Sequence[float]) -> Picture:
    """Weight a over students, over teachers, across a jump, and against mu."""
    fixed_NV = torch.tensor(teacher, dtype=torch.float64).log().expand_as(grid(SIDE, EDGE))
    shares = [i / 200 for i in range(201)]
    walk_NV = torch.tensor(teacher_walk(teacher, shares), dtype=torch.float64).log()
    student_NV = torch.tensor(teacher[::-1], dtype=torch.float64).log().expand_as(walk_NV)
    mus = [0.001, 0.005, *(i / 50 for i in range(1, 50)), 0.995, 0.999]
    lines = [
        Curve(label_of(name), shares, value_and_gradient(make_loss(name), student_NV, walk_NV)[0].tolist(), look)
        for look, name in enumerate(("fkl", "rkl", "fkl_rkl", "akl"))
    ]
    rules = [
        Curve(f"head={rule}", mus, [float(forward_weight(pair, mu=mu, head=rule).mean()) for mu in mus], 4 + i)
        for i, rule in enumerate(HEAD_RULES)
    ]
    return Picture(
        "akl",
        f"AKL's weight a of forward KL, and where it jumps; fixed: ({', '.join(f'{p:g}' for p in teacher)})",
        (
            _weights("over students, the teacher fixed", teacher, lambda x: forward_weight((x, fixed_NV), mu=0.5)),
            _weights("over teachers, the student fixed", teacher, lambda x: forward_weight((fixed_NV, x), mu=0.5)),
            Panel("two classes of the teacher swap: a jump", "share of the swap", "nats", tuple(lines)),
            Panel(f"against mu, mean of {len(pair[0])} pairs", "mu", "weight a", tuple(rules), y_limits=(-0.03, 1.03)),
        ),
    )


def _weights(title: str, fixed: Sequence[float], weight: Callable[[Tensor], Tensor]) -> Panel:
    points_NV = grid(SIDE, EDGE)
    x, y = places(points_NV)
    here_x, here_y = on_simplex(*fixed)
    return Panel(
        title,
        surface=Surface(x, y, weight(points_NV.log()).tolist(), "weight a (mu = 0.5)", limits=(0.0, 0.5)),
        simplex=CLASSES,
        curves=(Curve("the fixed one", [here_x], [here_y], 1, kind="points"),),
    )


def _figures(rows: Table, column: str) -> str:
    return ", ".join(f"{row['loss']} {row[column]:.2g}" for row in rows) or "none"


def _labels(rows: Table) -> str:
    return " or ".join(str(row["loss"]) for row in rows)
