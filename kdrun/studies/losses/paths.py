"""The losses on the way from a student to the teacher: value, size of the gradient, convexity.

Two ways: the mixture (1 - s) q + s p, and the logits (1 - s) z_q + s z_p, s from 0 (the student) to 1 (the teacher).
Shapes: N students, S places on the way, V classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.losses import LOSSES
from kdrun.studies.contenders import Contender
from kdrun.studies.findings import Claim, Table, holds
from kdrun.studies.losses.pairs import Pair, in_panels, value_and_gradient
from kdrun.studies.pictures import Curve, Panel, Picture, log_limits

EXPONENT = 1.5  # of Zipf's law: the likeliest of 1,000 classes has 0.39 of the mass
NUM_STUDENTS, NUM_PLACES = 16, 51
WAYS = ("mixture", "logits")
ROUNDING = 1e-12  # of the value at the start: what a second difference may fall below 0 by rounding


@dataclass(frozen=True)
class Walk:
    """One loss on one way: nats_NS and norm_NS of the gradient in the logits."""

    entrant: Contender
    way: str
    nats_NS: Tensor
    norm_NS: Tensor

    @property
    def least_bend(self) -> float:
        """Smallest second difference over s, as a share of the value at the start; >= 0 for a convex loss."""
        bends_NS = self.nats_NS.diff(n=2, dim=1) / self.nats_NS[:, :1].abs().clamp(min=1e-300)
        return float(bends_NS.min())

    @property
    def convex(self) -> bool:
        """Whether no place bends down by more than rounding."""
        return self.least_bend >= -ROUNDING

    @property
    def rises(self) -> float:
        """Share of the steps towards the teacher at which the value grows by more than rounding."""
        return float((self.nats_NS.diff(dim=1) > ROUNDING * self.nats_NS[:, :1]).double().mean())


def zipf_pairs(num: int, *, vocabulary: int, seed: int) -> Pair:
    """(student_logits_NV, teacher_logits_NV): Zipf's law, and the same probabilities dealt to random classes.

    The student knows how often words occur, and not which one stands here.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher_V = -EXPONENT * torch.arange(1, vocabulary + 1, dtype=torch.float64).log()
    dealt_NV = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(num)])
    return teacher_V[dealt_NV], teacher_V.expand(num, -1)


def walks(entrants: Sequence[Contender], *, vocabulary: int, seed: int) -> list[Walk]:
    """Every loss on both ways from NUM_STUDENTS students."""
    student_NV, teacher_NV = zipf_pairs(NUM_STUDENTS, vocabulary=vocabulary, seed=seed)
    found = []
    for way in WAYS:
        places_SNV = on_the_way(student_NV, teacher_NV, way=way)
        for entrant in entrants:
            loss = entrant.loss()
            looks = [value_and_gradient(loss, place_NV, teacher_NV) for place_NV in places_SNV]
            nats_NS = torch.stack([nats_N for nats_N, _ in looks], dim=1)
            norm_NS = torch.stack([gradient_NV.norm(dim=-1) for _, gradient_NV in looks], dim=1)
            found.append(Walk(entrant, way, nats_NS, norm_NS))
    return found


def on_the_way(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, way: str) -> list[Tensor]:
    """Student logits [N, V] at each of NUM_PLACES places."""
    places = torch.linspace(0, 1, NUM_PLACES, dtype=torch.float64)
    if way == "logits":
        return [torch.lerp(student_logits_NV, teacher_logits_NV, s) for s in places]
    q_NV, p_NV = (torch.softmax(x, dim=-1) for x in (student_logits_NV, teacher_logits_NV))
    return [torch.lerp(q_NV, p_NV, s).log() for s in places]


def path_picture(found: Sequence[Walk], *, vocabulary: int) -> Picture:
    """Value and norm of the gradient on both ways, means over the students."""
    places = torch.linspace(0, 1, NUM_PLACES).tolist()[:-1]  # all is 0 at the teacher, which has no place on a log axis
    rows = []
    for title, y_label, part in (
        ("value", "nats", "nats_NS"),
        ("norm of the gradient", "nats a unit of logit", "norm_NS"),
    ):
        for way, mixed in (("mixture", "p and q"), ("logits", "logits")):
            own = [walk for walk in found if walk.way == way]
            means = [getattr(walk, part)[:, :-1].mean(0).tolist() for walk in own]
            positive = [value for mean in means for value in mean if value > 0]
            limits = log_limits(positive) if positive else None
            curves = [Curve(w.entrant.label, places, mean, w.entrant.look) for w, mean in zip(own, means, strict=True)]
            words = f"{title}, mixture of {mixed}"
            rows.append([
                Panel(words, "share of the teacher s", y_label, group, log_y=True, y_limits=limits)
                for group in in_panels(curves)
            ])  # fmt: skip
    title = f"On the way to the teacher: {vocabulary:,} classes, Zipf's law, mean of {NUM_STUDENTS} students"
    return Picture("paths", title, [panel for column in zip(*rows, strict=True) for panel in column], columns=4)


def path_table(found: Sequence[Walk]) -> Table:
    """One row a loss and way."""
    return [
        {
            "loss": walk.entrant.label,
            "way": walk.way,
            "start_nats": float(walk.nats_NS[:, 0].mean()),
            "start_gradient_norm": float(walk.norm_NS[:, 0].mean()),
            "largest_gradient_norm": float(walk.norm_NS.mean(0).max()),
            "largest_at_share": float(walk.norm_NS.mean(0).argmax()) / (NUM_PLACES - 1),
            "least_second_difference_share": walk.least_bend,
            "convex": walk.convex,
            "rising_step_share": walk.rises,
        }
        for walk in found
    ]


def path_claims(found: Sequence[Walk]) -> list[Claim]:
    """Convexity of f-divergences on mixtures, of forward KL alone in the logits."""
    mixture, logits = ([walk for walk in found if walk.way == way] for way in WAYS)
    proven = [walk for walk in mixture if LOSSES[walk.entrant.name].is_f_divergence]
    forward = [walk for walk in logits if walk.entrant.name == "fkl"]
    rule = f"no second difference below -{ROUNDING:g} of the value at the start, {NUM_STUDENTS} students"
    claims = []
    if proven:
        claims.append(
            Claim(
                "convex-on-mixtures",
                "An f-divergence is convex in the student's probabilities, so it has no hill on a straight way there.",
                "Csiszar 1967; the definitions of the losses",
                f"least second difference {min(walk.least_bend for walk in proven):.1e} of the start's value over "
                f"{', '.join(walk.entrant.label for walk in proven)}; not convex on these ways: {_bent(mixture)}",
                rule,
                holds(all(walk.convex for walk in proven)),
                proven=True,
            )
        )
    if forward:
        rising = [f"{walk.entrant.label} ({walk.rises:.0%} of steps)" for walk in logits if walk.rises]
        claims.append(
            Claim(
                "forward-kl-convex-in-logits",
                "Forward KL is convex in the student's logits, where the optimiser moves.",
                "log-sum-exp is convex; Hinton et al. 2015 for the loss",
                f"least second difference {forward[0].least_bend:.1e} of the start's value; not convex on these ways: "
                f"{_bent(logits)}; growing somewhere on the way: {', '.join(rising) or 'none'}",
                rule,
                holds(forward[0].convex),
                proven=True,
            )
        )
    return claims


def _bent(walks: Sequence[Walk]) -> str:
    return ", ".join(walk.entrant.label for walk in walks if not walk.convex) or "none"
