"""The study `theory`: the lemmas of Zhong 2025 and what follows from the AKL paper's definitions, in float64.

Zhong 2025 is read through a reconstruction of its lemmas: numbers as there, words ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdrun.studies.findings import Claim, Findings, Table
from kdrun.studies.theory import descent, pictures, smoothness, statements, verdicts
from kdrun.studies.theory.pairs import all_pairs, num_kinds
from kdrun.studies.theory.statements import NEARLY_0, NEARLY_1, STATIONARY, forward_weights, wide_enough

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
    num_blocks = num_kinds(scales) * len(num_classes) + len(scales) + smoothness.NUM_DRAWS + len(descent.STEP_SIZES)
    advance = begin(num_blocks + descent.num_minima(STATIONARY))
    tallies = [verdicts.Tally(statement) for statement in statements.statements()]
    dial: dict[tuple[str, float], list[Tensor]] = {}
    rated: list[list[float]] = []
    bounds: dict[str, dict[int, list[tuple[float, float]]]] = {"fkl": {}, "rkl": {}}
    for pairs in all_pairs(num_pairs, num_classes=num_classes, scales=scales, seed=seed):
        for tally in tallies:
            tally.add(pairs)
        if pairs.num_classes == max(num_classes):
            for mu, seen in ((NEARLY_0, pairs), (NEARLY_1, wide_enough(pairs))):
                for head, weight_N in forward_weights(seen, mu=mu).items():
                    dial.setdefault((head, mu), []).append(weight_N)
        flag_NV = statements.over_rated(pairs)
        rated.append([float((mass_NV * flag_NV).sum(-1).mean()) for mass_NV in (pairs.p_NV, pairs.q_NV)])
        for name, bound in (("fkl", statements.forward_bound), ("rkl", statements.reverse_bound)):
            norm_N, gap_N = (side_N[:DRAWN_A_KIND].tolist() for side_N in bound(pairs))
            bounds[name].setdefault(pairs.num_classes, []).extend(zip(gap_N, norm_N, strict=True))
        advance()
    norms = smoothness.hessian_norms(num_pairs, scales=scales, seed=seed, advance=advance)
    draws = smoothness.gap_draws(num_pairs, seed=seed, advance=advance)
    descents = [descent.sgd_on_forward_kl(step_size, seed=seed) for step_size in descent.STEP_SIZES]
    advance(len(descent.STEP_SIZES))
    found = descent.minima(STATIONARY, num_starts=num_starts, seed=seed, advance=advance)

    claims = {tally.statement.key: tally.claim(tolerance) for tally in tallies}
    claims["reverse_gap_half"] = _with_masses(claims["reverse_gap_half"], rated)
    rows = [row for tally in tallies for row in tally.rows]
    return Findings(
        claims=[
            *claims.values(),
            verdicts.minima_claim(found),
            verdicts.dial_claim(dial),
            verdicts.head_gap_claim(draws),
            *verdicts.smoothness_claims(norms, tolerance=tolerance),
            verdicts.theorem_claim(descents),
        ],
        tables={
            "theory": [*rows, *verdicts.further_rows(norms, descents, found)],
            "head_gap": _correlations(draws),
        },
        pictures=[
            pictures.smoothness_picture(norms),
            pictures.bounds_picture(bounds),
            pictures.head_gap_picture(draws),
            pictures.theorem_picture(descents),
        ],
    )


def _with_masses(claim: Claim, rated: Sequence[Sequence[float]]) -> Claim:
    """Adds what the classes with log(q/p) > R hold, on average over the kinds of pairs."""
    teacher, student = torch.tensor(rated).mean(0).tolist()
    words = f"these classes hold {teacher:.2f} of the teacher's mass and {student:.2f} of the student's"
    return replace(claim, measured=f"{claim.measured}; {words}")


def _correlations(draws: Sequence[smoothness.GapDraw]) -> Table:
    return [
        {
            "pairs": draw.kind, "num_pairs": len(draw.norm_N), "correlation_with_head_gap": draw.correlations[0],
            "correlation_with_signed_head_gap": draw.correlations[1],
        }
        for draw in draws
    ]  # fmt: skip
