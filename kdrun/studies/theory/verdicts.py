"""From measurements to claims: what the study `theory` says of each statement, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdrun.studies.contenders import label_of
from kdrun.studies.findings import Claim, Table, holds, holds_in, listed
from kdrun.studies.theory.descent import NUM_RUNS, NUM_TEACHERS, SGD_CLASSES, START_CLASSES, Descent, Minimum
from kdrun.studies.theory.pairs import Pairs
from kdrun.studies.theory.smoothness import GAP_CLASSES, HESSIAN_CLASSES, GapDraw
from kdrun.studies.theory.statements import AKL_PAPER, NEARLY_0, NEARLY_1, ZHONG, Statement

RATIO_FROM = 1e-9  # left / right is not told where right is mere rounding
NORM_BOUNDS = {  # bounds of the Hessians' norms
    "fkl": 0.5,
    "jsd": 0.125,  # its norm at p = q with half the mass on each of two classes; no search found more
    "rkl": 1.0,  # what is called a small smoothness constant here: twice forward KL's
}
FOUND = 1e-6  # max abs(q - p) of a student that has reached the teacher
NEAR_END = 0.01  # a weight this near to 0 or 1 has reached it
HeadWeights = Mapping[tuple[str, float], Sequence[Tensor]]  # (head rule, nearly 0 or 1) -> AKL's weight_N, kind by kind


@dataclass
class Tally:
    """What one proven statement comes to over all pairs. rows: the worst pair of each kind."""

    statement: Statement
    num_measured: int = 0
    slack: float = torch.inf
    worst: str = "no pair"
    ratio: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, pairs: Pairs) -> None:
        """Measures these pairs."""
        left_M, right_M = self.statement.sides(pairs)
        if not len(left_M):
            return
        slack_M = (right_M - left_M).nan_to_num(nan=-torch.inf)
        index = int(slack_M.argmin())
        self.num_measured += len(left_M)
        self.rows.append(row(self.statement.key, pairs.kind, pairs.num_classes, left_M[index], right_M[index]))
        if slack_M[index] < self.slack:
            self.slack, self.worst = float(slack_M[index]), f"{pairs.kind}, {pairs.num_classes} classes"
        told_M = right_M > RATIO_FROM
        if told_M.any():
            self.ratio = max(self.ratio, float((left_M[told_M] / right_M[told_M]).max()))

    def claim(self, tolerance: float) -> Claim:
        """The statement with its verdict."""
        statement = self.statement
        unit = f" {statement.unit}".rstrip()
        if statement.identity:
            said = f"error at most {-self.slack:.1e}{unit} ({self.num_measured:,} measured; worst: {self.worst})"
            by = f"error at most {tolerance:g}{unit}"
        elif statement.strict:
            said = f"at least {self.slack:.1e}{unit} ({self.num_measured:,} measured; least: {self.worst})"
            by = "above 0 in every pair"
        else:
            said = f"overstepped by at most {max(0.0, -self.slack):.2g}{unit} ({self.num_measured:,} measured)"
            by = f"overstepped by at most {tolerance:g}{unit}"
        if statement.ratio:
            said += f"; the left side reaches {self.ratio:.3f} of the right"
        well = self.slack > 0 if statement.strict else self.slack >= -tolerance
        return Claim(
            statement.key, statement.says, statement.source, said, by, holds(well and self.num_measured > 0),
            proven=True,
        )  # fmt: skip


def row(check: str, regime: str, classes: int, measured: float | Tensor, bound: float | Tensor) -> dict[str, Any]:
    """A row of tables/theory.csv; slack is bound - measured, negative where the statement fails."""
    measured, bound = float(measured), float(bound)
    return {
        "check": check, "regime": regime, "classes": classes, "measured": measured, "bound": bound,
        "slack": bound - measured,
    }  # fmt: skip


def minima_claim(found: Sequence[Minimum]) -> Claim:
    """Descent from random starts ends at the teacher; a condition names each loss and the starts from which it does."""
    scales = sorted({end.start_scale for end in found})
    reached: dict[str, list[str]] = {}
    for end in found:
        if end.line_search and float(end.error_R.max()) < FOUND:
            reached.setdefault(label_of(end.loss), []).append(f"{end.start_scale:g}")
    num_reached, num_cases = sum(map(len, reached.values())), sum(end.line_search for end in found)
    conditions = ", ".join(f"{label} from {' and '.join(scales)}" for label, scales in reached.items())
    words = []
    for scale in scales:
        counts = [
            f"{label_of(end.loss)}{'' if end.line_search else ' without line search'} "
            f"{int((end.error_R < FOUND).sum())}{_stuck(end)}"
            for end in found
            if end.start_scale == scale
        ]
        words.append(f"from logits of scale {scale:g}: {', '.join(counts)}")
    num_starts = len(found[0].error_R)
    return Claim(
        "minimum_is_teacher",
        "So a student that follows the gradient of forward KL, reverse KL, AKL or JSD ends at the teacher.",
        f"{ZHONG}, Lemmas 2.1 and 3.2, in use",
        f"of {num_starts} starts, those whose student reaches the teacher (LBFGS, {START_CLASSES} classes, teacher of "
        f"scale 1), {'; '.join(words)}",
        f"max abs(q - p) below {FOUND:g} for all {num_starts} starts of every loss, with a line search",
        *holds_in(
            num_reached, num_cases, where=f"the student starts at a logit scale that its loss bears: {conditions}"
        ),
    )


def _stuck(end: Minimum) -> str:
    """How the worst start ended, where it did not reach the teacher; a gradient of 0 there is an underflow."""
    worst = int(end.error_R.argmax())
    if end.error_R[worst] < FOUND:
        return ""
    return f" (worst: error {end.error_R[worst]:.2g}, gradient {end.gradient_R[worst]:.1g})"


def dial_claim(weights: HeadWeights) -> Claim:
    """mu moves AKL from reverse to forward KL; a condition names the ends that are reached."""
    means = {end: float(torch.cat(list(seen)).mean()) for end, seen in weights.items()}
    wanted = {NEARLY_0: 0.0, NEARLY_1: 1.0}
    reached = [end for end, mean in means.items() if abs(mean - wanted[end[1]]) <= NEAR_END]
    said = [
        f"{head} {means[head, NEARLY_0]:.3f} as mu -> 0, {means[head, NEARLY_1]:.3f} as mu -> 1"
        for head in dict.fromkeys(head for head, _ in means)
    ]
    ends = [f"mu -> {round(mu)} by head={head}" for head, mu in reached]
    return Claim(
        "mu_as_a_dial", "mu is a dial: AKL goes from reverse KL (mu -> 0) to forward KL (mu -> 1).",
        f"{AKL_PAPER}, as mu is often read", f"mean weight of forward KL (mu = 1e-9 and 1 - 1e-9): {'; '.join(said)}",
        f"mean weight within {NEAR_END:g} of 0 and of 1",
        *holds_in(len(reached), len(means), where=" or ".join(ends)),
    )  # fmt: skip


def head_gap_claim(draws: Sequence[GapDraw]) -> Claim:
    """Doubtful unless both readings of the lemma agree, in sign, in every draw."""
    signs = set()
    words = []
    for draw in draws:
        absolute, signed = draw.correlations
        limit = 3 / len(draw.norm_N) ** 0.5
        signs |= {(value < -limit) - (value > limit) for value in (absolute, signed)}
        words.append(f"{draw.kind} {absolute:+.2f} and {signed:+.2f}")
    return Claim(
        "head_gap_lowers_bound",
        "Of two students with the same total gap, the one whose gap lies more in the head has the smaller gradient.",
        f"{ZHONG}, Lemma 4.5",
        f"correlation of forward KL's gradient norm with the head gap, absolute and signed ({GAP_CLASSES} classes, "
        f"total gap 0.4): {'; '.join(words)}",
        "holds if every correlation is below -3 / sqrt(pairs), contradicted if every one is above 3 / sqrt(pairs), "
        "else doubtful",
        "holds" if signs == {1} else "contradicted" if signs == {-1} else "doubtful",
    )


def smoothness_claims(norms: Mapping[str, Mapping[float, float]], *, tolerance: float) -> Iterator[Claim]:
    """Of forward KL (proven), JSD and reverse KL. norms: {loss: {teacher's logit scale: largest Hessian norm}}."""
    for name, says, by, margin in (
        ("fkl", "Forward KL's Hessian diag(q) - q q' has a norm of at most 1/2, whatever the teacher.",
         f"at most 1/2 + {tolerance:g}", tolerance),
        ("jsd", "JSD's smoothness constant is small, whatever the teacher.",
         "at most 1/8, its norm at p = q = (1/2, 1/2): a quarter of forward KL's", tolerance),
        ("rkl", "Reverse KL's smoothness constant is a bounded small parameter.",
         f"at most {NORM_BOUNDS['rkl']:g}, twice forward KL's bound, at every scale", 0.0),
    ):  # fmt: skip
        at = norms[name]
        measured = f"largest Hessian norm {listed(at.values(), '.3g')} nats at teacher logit scale {listed(at, '.3g')}"
        well = holds(max(at.values()) <= NORM_BOUNDS[name] + margin)
        source = f"{ZHONG}, section 4 (smoothness)"
        yield Claim(f"smoothness_{name}", says, source, measured, by, well, proven=name == "fkl")


def theorem_claim(descents: Sequence[Descent]) -> Claim:
    """SGD on forward KL stays under the bound after every number of steps."""
    first = descents[0]
    words = [
        f"{float(d.mean_square_T[-1]):.4f} (bound {float(d.bound_T[-1]):.4f}) at step size {d.step_size:g}"
        for d in descents
    ]
    nearest = max(float((d.mean_square_T / d.bound_T).max()) for d in descents)
    return Claim(
        "theorem_4_1",
        "Over T steps of SGD with step size gamma of at most 1/L, the mean squared gradient is at most "
        "2 (f_0 - f_T) / (gamma T) + gamma L s^2.",
        f"{ZHONG}, Theorem 4.1 (constants as in Ghadimi and Lan 2013)",
        f"forward KL, L = 1/2, mean of {NUM_RUNS} runs after {len(first.bound_T)} steps: {', '.join(words)}; at any T "
        f"at most {nearest:.2f} of the bound. s^2 = {first.variance:.4f} nats^2 is the variance of the gradient on one "
        f"teacher of {NUM_TEACHERS} around the gradient on all of them ({first.drawn_variance:.4f} over the draws)",
        "the mean over the runs is at most the bound for every T up to the last",
        holds(all(bool((d.mean_square_T <= d.bound_T).all()) for d in descents)), proven=True,
    )  # fmt: skip


def further_rows(
    norms: Mapping[str, Mapping[float, float]], descents: Sequence[Descent], found: Sequence[Minimum]
) -> Table:
    """Rows of tables/theory.csv for what is not measured pair by pair."""
    rows = [
        row(f"smoothness_{name}", f"teacher scale {scale:g}", HESSIAN_CLASSES, norm, NORM_BOUNDS[name])
        for name, at in norms.items()
        for scale, norm in at.items()
    ]
    for d in descents:
        worst = (d.bound_T - d.mean_square_T).argmin()
        sides = d.mean_square_T[worst], d.bound_T[worst]
        rows.append(row("theorem_4_1", f"step size {d.step_size:g}", SGD_CLASSES, *sides))
    for end in found:
        how = "" if end.line_search else ", no line search"
        regime = f"{label_of(end.loss)} from scale {end.start_scale:g}{how}"
        rows.append(row("minimum_is_teacher", regime, START_CLASSES, end.error_R.max(), FOUND))
    return rows
