"""The study `theory`: the lemmas of Zhong 2025 and what follows from the AKL paper's definitions, in float64.

Zhong 2025 is read through a reconstruction of its lemmas: numbers as there, words ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdrun.studies.findings import Claim, Findings, Table
from kdrun.studies.theory.descent import STEP_SIZES, minima, num_minima, sgd_on_forward_kl
from kdrun.studies.theory.pairs import all_pairs, num_kinds
from kdrun.studies.theory.pictures import bounds_picture, head_gap_picture, smoothness_picture, theorem_picture
from kdrun.studies.theory.smoothness import NUM_DRAWS, GapDraw, gap_draws, hessian_norms
from kdrun.studies.theory.statements import (
    NEARLY_0,
    NEARLY_1,
    STATIONARY,
    end_weights,
    forward_bound,
    over_rated,
    reverse_bound,
    statements,
    wide_enough,
)
from kdrun.studies.theory.verdicts import (
    Tally,
    dial_claim,
    further_rows,
    head_gap_claim,
    minima_claim,
    smoothness_claims,
    theorem_claim,
)

DRAWN_A_KIND = 12  # pairs in the picture of the bounds


def study(
    *,
    num_pairs: int,
    num_classes: Sequence[int],
    scales: Sequence[float],
    num_starts: int,
    tolerance: float,
    seed: int,
    begin: Callable[[int], Callable[..., None]],
) -> Findings:
    """Every statement on every kind of pair; then Hessians, the head gap, SGD on forward KL, and LBFGS."""
    num_blocks = num_kinds(scales) * len(num_classes) + len(scales) + NUM_DRAWS + len(STEP_SIZES)
    advance = begin(num_blocks + num_minima(STATIONARY))
    tallies = [Tally(statement) for statement in statements()]
    dial: dict[tuple[str, float], list[Tensor]] = {}
    rated: list[list[float]] = []
    bounds: dict[str, dict[int, list[tuple[float, float]]]] = {"fkl": {}, "rkl": {}}
    for pairs in all_pairs(num_pairs, num_classes=num_classes, scales=scales, seed=seed):
        for tally in tallies:
            tally.add(pairs)
        if pairs.num_classes == max(num_classes):
            for mu, seen in ((NEARLY_0, pairs), (NEARLY_1, wide_enough(pairs))):
                for head, weight_N in end_weights(seen, mu=mu).items():
                    dial.setdefault((head, mu), []).append(weight_N)
        flag_NV = over_rated(pairs)
        rated.append([float((mass_NV * flag_NV).sum(-1).mean()) for mass_NV in (pairs.p_NV, pairs.q_NV)])
        for name, bound in (("fkl", forward_bound), ("rkl", reverse_bound)):
            norm_N, gap_N = (side_N[:DRAWN_A_KIND].tolist() for side_N in bound(pairs))
            bounds[name].setdefault(pairs.num_classes, []).extend(zip(gap_N, norm_N, strict=True))
        advance()
    norms = hessian_norms(num_pairs, scales=scales, seed=seed, advance=advance)
    draws = gap_draws(num_pairs, seed=seed, advance=advance)
    descents = [sgd_on_forward_kl(step_size, seed=seed) for step_size in STEP_SIZES]
    advance(len(STEP_SIZES))
    found = minima(STATIONARY, num_starts=num_starts, seed=seed, advance=advance)

    claims = {tally.statement.key: tally.claim(tolerance) for tally in tallies}
    claims["reverse_gap_half"] = _with_masses(claims["reverse_gap_half"], rated)
    further = (minima_claim(found), dial_claim(dial), head_gap_claim(draws))
    return Findings(
        (*claims.values(), *further, *smoothness_claims(norms, tolerance=tolerance), theorem_claim(descents)),
        {
            "theory": [*(row for tally in tallies for row in tally.rows), *further_rows(norms, descents, found)],
            "head_gap": _correlations(draws),
        },
        (smoothness_picture(norms), bounds_picture(bounds), head_gap_picture(draws), theorem_picture(descents)),
    )


def _with_masses(claim: Claim, rated: Sequence[Sequence[float]]) -> Claim:
    """Adds what the classes with log(q/p) > R hold, on average over the kinds of pairs."""
    teacher, student = torch.tensor(rated).mean(0).tolist()
    words = f"these classes hold {teacher:.2f} of the teacher's mass and {student:.2f} of the student's"
    return replace(claim, measured=f"{claim.measured}; {words}")


def _correlations(draws: Sequence[GapDraw]) -> Table:
    return [
        {
            "pairs": draw.kind, "num_pairs": len(draw.norm_N), "correlation_with_head_gap": draw.correlations[0],
            "correlation_with_signed_head_gap": draw.correlations[1],
        }
        for draw in draws
    ]  # fmt: skip
