"""The ends of the losses' parameters: identities, limits, and the values in between.

A limit compares a loss at a distance from the end with the loss at the end itself, which the library takes by another
formula; an identity compares two names for one loss. Both in value and gradient, on pairs of middle distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kdrun.losses import Loss, make_loss
from kdrun.studies.findings import Claim, Table, holds, rows_with
from kdrun.studies.losses.pairs import Pair, value_and_gradient
from kdrun.studies.pictures import Curve, Panel, Picture

ROOM = (-0.05, 1.2)  # beside the curves, for the names of the levels
NOISE = 1.0  # std of the student's: farther off, a limit is reached later than DISTANCES go
DISTANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
AT_LAST = 1e-2  # relative deviation allowed at the least distance
FALL = 5.0  # times, at least, that a deviation falls for each tenfold approach, once below a tenth
FLOOR = 1e-9  # relative: deviations below it are rounding
SAME = 1e-10  # relative deviation of an identity
STATEMENTS = {
    "jsd": (
        "JSD over beta tends to forward KL as beta -> 0, and over 1 - beta to reverse KL as beta -> 1.",
        "GKD, arXiv 2306.13649, Section 2; Huszar 2015",
    ),
    "skew": (
        "Skewed KLs begin at forward and reverse KL (alpha = 0) and fade as (1 - alpha)^2 times a chi^2 (alpha -> 1).",
        "DistiLLM, arXiv 2402.03898, definition of SKL and SRKL; the end at 1 by expansion",
    ),
    "ab": (
        "The AB-divergence is forward KL at (1, 0), reverse KL at (0, 1), and continuous across its singular lines.",
        "ABKD, arXiv 2505.04560, definition of the divergence and its extension by continuity",
    ),
    "alpha": (
        "The alpha-divergence tends to forward KL as alpha -> 1 and to reverse KL as alpha -> 0.",
        "Amari; the seed slides",
    ),
    "amid": (
        "AMiD holds others as cases: SKL at alpha = -1, TAID's target at alpha = 1, forward KL at lam = 0.",
        "AMiD, arXiv 2510.15982, the assistant's definition and its cases",
    ),
    "taid": (
        "TAID starts at no loss (t = 0: the target is the student) and ends at forward KL (t = 1).",
        "TAID, arXiv 2501.16937, the intermediate distribution",
    ),
}


def _one(_: float) -> float:
    return 1.0


@dataclass(frozen=True)
class Limit:
    """`near(d)`, divided by `scale(d)`, tends to `end` as the distance d goes to 0. key: of the claim it belongs to."""

    key: str
    words: str
    near: Callable[[float], Loss]
    end: Loss
    scale: Callable[[float], float] = _one


@dataclass(frozen=True)
class Identity:
    """Two losses that are one, or (right: None) a loss that is 0. gradient: whether their gradients are, too."""

    key: str
    words: str
    left: Loss
    right: Loss | None
    gradient: bool = True


def limits() -> list[Limit]:
    """Every end of a parameter that the papers name."""
    fkl, rkl = make_loss("fkl"), make_loss("rkl")

    def linear(d: float) -> float:
        return d

    def square(d: float) -> float:
        return d * d

    return [
        Limit("jsd", "JSD / beta -> FKL, beta -> 0", lambda d: make_loss("jsd", beta=d), fkl, linear),
        Limit("jsd", "JSD / (1 - beta) -> RKL, beta -> 1", lambda d: make_loss("jsd", beta=1 - d), rkl, linear),
        Limit("skew", "SKL -> FKL, alpha -> 0", lambda d: make_loss("skl", alpha=d), fkl),
        Limit("skew", "SRKL -> RKL, alpha -> 0", lambda d: make_loss("srkl", alpha=d), rkl),
        Limit(
            "skew", "SKL / (1 - alpha)^2 -> alpha-divergence at -1 (half of Pearson's chi^2), alpha -> 1",
            lambda d: make_loss("skl", alpha=1 - d), make_loss("alpha", alpha=-1), square,
        ),
        Limit(
            "skew", "SRKL / (1 - alpha)^2 -> alpha-divergence at 2 (half of Neyman's chi^2), alpha -> 1",
            lambda d: make_loss("srkl", alpha=1 - d), make_loss("alpha", alpha=2), square,
        ),
        Limit("ab", "AB -> FKL at (1, 0)", lambda d: make_loss("ab", alpha=1, beta=d), fkl),
        Limit("ab", "AB -> RKL at (0, 1)", lambda d: make_loss("ab", alpha=d, beta=1), rkl),
        *(
            Limit(
                "ab", f"AB across {line} at {place}, from {'above' if sign > 0 else 'below'}",
                _ab(start, (sign * way[0], sign * way[1])), make_loss("ab", alpha=start[0], beta=start[1]),
            )
            for line, place, start, way in (
                ("beta = 0", "alpha = 0.7", (0.7, 0.0), (0, 1)),
                ("alpha = 0", "beta = 0.7", (0.0, 0.7), (1, 0)),
                ("alpha + beta = 0", "alpha = 0.5", (0.5, -0.5), (0, 1)),
                ("both lines", "alpha = beta = 0", (0.0, 0.0), (1, 1)),
            )
            for sign in (1, -1)
        ),
        Limit("alpha", "alpha -> FKL, alpha -> 1", lambda d: make_loss("alpha", alpha=1 - d), fkl),
        Limit("alpha", "alpha -> RKL, alpha -> 0", lambda d: make_loss("alpha", alpha=d), rkl),
        Limit("amid", "AMiD -> FKL, lam -> 0", lambda d: make_loss("amid", lam=d), fkl),
        Limit(
            "amid", "AMiD -> the geometric assistant's, alpha -> 1",
            lambda d: make_loss("amid", alpha=1 - d, lam=0.3), make_loss("amid", alpha=1, lam=0.3),
        ),
        Limit("taid", "TAID -> FKL, t -> 1", lambda d: make_loss("taid", t_start=1 - d), fkl),
    ]  # fmt: skip


def _ab(start: tuple[float, float], way: tuple[int, int]) -> Callable[[float], Loss]:
    return lambda d: make_loss("ab", alpha=start[0] + d * way[0], beta=start[1] + d * way[1])


def identities() -> list[Identity]:
    """Two names, one loss."""
    fkl, rkl, geometric = make_loss("fkl"), make_loss("rkl"), make_loss("amid", alpha=1, lam=0.4, order="rq")
    return [
        Identity("jsd", "JSD at beta = 0 is FKL by definition", make_loss("jsd", beta=0), fkl),
        Identity("jsd", "JSD at beta = 1 is RKL by definition", make_loss("jsd", beta=1), rkl),
        Identity("skew", "SKL at alpha = 0 is FKL", make_loss("skl", alpha=0), fkl),
        Identity("skew", "SRKL at alpha = 0 is RKL", make_loss("srkl", alpha=0), rkl),
        Identity("ab", "AB at (1, 0) is FKL", make_loss("ab", alpha=1, beta=0), fkl),
        Identity("ab", "AB at (0, 1) is RKL", make_loss("ab", alpha=0, beta=1), rkl),
        Identity("alpha", "alpha at 1 is FKL", make_loss("alpha", alpha=1), fkl),
        Identity("alpha", "alpha at 0 is RKL", make_loss("alpha", alpha=0), rkl),
        Identity("amid", "AMiD at lam = 0 is FKL", make_loss("amid", lam=0), fkl),
        Identity("amid", "AMiD at alpha = -1 is SKL with alpha = lam", make_loss("amid", alpha=-1, lam=0.1),
                 make_loss("skl", alpha=0.1)),
        Identity(
            "amid", "AMiD at alpha = 1, order rq, has TAID's value (not its gradient)",
            geometric, make_loss("taid", t_start=0.4), gradient=False,
        ),
        Identity("taid", "TAID at t = 1 is FKL", make_loss("taid", t_start=1), fkl),
        Identity("taid", "TAID at t = 0 is 0", make_loss("taid", t_start=0), None),
    ]  # fmt: skip


def deviation(left: Tensor, right: Tensor) -> float:
    """Largest over pairs of abs(left - right) / abs(right), norms for gradients; absolute where all of right is 0."""
    if left.dim() == 1:
        left, right = left[:, None], right[:, None]
    apart_N, size_N = (left - right).norm(dim=-1), right.norm(dim=-1)
    return float((apart_N / size_N if size_N.any() else apart_N).max())


def _deviations(left: Sequence[Tensor], right: Sequence[Tensor]) -> dict[str, float]:
    """Of value and gradient, in this order on both sides."""
    return {"value_deviation": deviation(left[0], right[0]), "gradient_deviation": deviation(left[1], right[1])}


def limit_table(pair: Pair) -> Table:
    """One row a limit and distance: relative deviations of value and gradient, largest over the pairs."""
    rows = []
    for limit in limits():
        end = value_and_gradient(limit.end, *pair)
        for distance in DISTANCES:
            near = [x / limit.scale(distance) for x in value_and_gradient(limit.near(distance), *pair)]
            rows.append({"claim": limit.key, "limit": limit.words, "distance": distance, **_deviations(near, end)})
    return rows


def identity_table(pair: Pair) -> Table:
    """One row an identity: relative deviations of value and gradient, largest over the pairs; absolute from 0."""
    rows = []
    for identity in identities():
        left = value_and_gradient(identity.left, *pair)
        right = value_and_gradient(identity.right, *pair) if identity.right else tuple(map(torch.zeros_like, left))
        names = {"claim": identity.key, "identity": identity.words}
        rows.append({**names, **_deviations(left, right), "gradients_agree": identity.gradient})
    return rows


def tends(deviations: Sequence[float]) -> bool:
    """Whether deviations at DISTANCES go to 0: small at last, and falling with the distance once below a tenth."""
    falling = (later <= max(earlier / FALL, FLOOR) for earlier, later in pairwise(deviations) if earlier < 0.1)
    return deviations[-1] <= AT_LAST and all(falling)


def limit_claims(limit_rows: Table, identity_rows: Table) -> list[Claim]:
    """One claim a family, judged by all its limits and identities."""
    claims = []
    for key, (statement, source) in STATEMENTS.items():
        runs: dict[str, tuple[list[float], list[float]]] = {}  # limit -> deviations of value and gradient
        for row in rows_with(limit_rows, claim=key):
            values, gradients = runs.setdefault(row["limit"], ([], []))
            values.append(row["value_deviation"])
            gradients.append(row["gradient_deviation"])
        last = {limit: max(values[-1], gradients[-1]) for limit, (values, gradients) in runs.items()}
        farthest = max(last, key=lambda limit: last[limit])
        same = rows_with(identity_rows, claim=key)
        worst = max(
            [row["value_deviation"] for row in same]
            + [row["gradient_deviation"] for row in same if row["gradients_agree"]]
        )
        claims.append(
            Claim(
                f"limits-{key}",
                statement,
                source,
                f"{len(last)} limits at distance {DISTANCES[-1]:g}: value and gradient off by at most "
                f"{last[farthest]:.1e} (relative; {farthest}); {len(same)} identities "
                f"({'; '.join(str(row['identity']) for row in same)}) within {worst:.1e}",
                f"deviations at {DISTANCES[-1]:g} at most {AT_LAST:g} and falling {FALL:g}-fold a tenfold approach; "
                f"identities to {SAME:g}",
                holds(all(tends(run) for pair in runs.values() for run in pair) and worst <= SAME),
                proven=True,
            )
        )
    return claims


def limit_picture(pair: Pair, *, noise_std: float) -> Picture:
    """The losses between the ends of their parameters, means over the pairs."""

    def nats(name: str, **params: float | str) -> float:
        return float(make_loss(name, **params)(*pair).mean())

    def curve(label: str, look: int, name: str, key: str, xs: Sequence[float], **fixed: float) -> Curve:
        return Curve(label, xs, [nats(name, **{key: x}, **fixed) for x in xs], look)

    inner, wide, around = _spaced(0.005, 0.995), _spaced(-12, 12), _spaced(-0.5, 1.5)
    from_0, whole = [0.0, *inner], [0.0, *inner, 1.0]
    jsd = curve("JSD", 0, "jsd", "beta", inner)
    divided = [value / (x * (1 - x)) for x, value in zip(inner, jsd.y, strict=True)]
    ends = (nats("jsd", beta=0), nats("jsd", beta=1))
    faded = (
        jsd,
        Curve("JSD / (beta (1 - beta))", inner, divided, 1),
        Curve("JSD by definition at 0 and 1", (0.0, 1.0), ends, 2, kind="points"),
    )
    skewed = (curve("SKL", 3, "skl", "alpha", from_0), curve("SRKL", 4, "srkl", "alpha", from_0))
    mixed = (
        curve("AKL over mu", 11, "akl", "mu", inner),
        curve("FKL+RKL over weight", 12, "fkl_rkl", "weight", whole),
    )
    moved = (
        curve("AMiD over lam, alpha=0", 9, "amid", "lam", from_0),
        curve("TAID over t", 10, "taid", "t_start", whole),
    )
    by_alpha = [curve("AB", 5, "ab", "alpha", _spaced(-0.75, 1.25), beta=0.7)]
    by_beta = [curve("AB", 5, "ab", "beta", around, alpha=0.7)]
    powers = [curve("alpha", 6, "alpha", "alpha", around)]
    assisted = [curve(f"AMiD lam={lam}", 7 + i, "amid", "alpha", wide, lam=lam) for i, lam in enumerate((0.1, 0.5))]
    kls, line = [("FKL", nats("fkl")), ("RKL", nats("rkl"))], "singular"
    panels = (
        Panel("JSD fades at both ends", "beta", "nats", faded, log_y=True),
        Panel("skewed KLs begin at KL", "alpha", "nats", skewed, levels=kls, x_limits=ROOM),
        Panel("AKL and the fixed mix", "mu, weight", "nats", mixed, levels=kls, x_limits=ROOM),
        Panel("AMiD and TAID between q and p", "lam, t", "nats", moved, levels=kls[:1], x_limits=ROOM),
        Panel("AB over alpha, beta = 0.7", "alpha", "nats", by_alpha, log_y=True, marks=[(line, 0.0), (line, -0.7)]),
        Panel("AB over beta, alpha = 0.7", "beta", "nats", by_beta, log_y=True, marks=[(line, 0.0)]),
        Panel("alpha-divergence", "alpha", "nats", powers, log_y=True, marks=[("RKL", 0.0), ("FKL", 1.0)]),
        Panel("AMiD over alpha", "alpha", "nats", assisted, marks=[("SKL", -1.0)]),
    )
    title = (
        f"The losses between the ends of their parameters, mean of {len(pair[0])} pairs, "
        f"student off by noise of std {noise_std:g}"
    )
    return Picture("limits", title, panels, columns=4)


def _spaced(low: float, high: float, num: int = 61) -> list[float]:
    return [low + (high - low) * i / (num - 1) for i in range(num)]
