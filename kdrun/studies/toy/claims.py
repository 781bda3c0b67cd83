"""What the sources say of the toy distributions, judged. Shapes: N starts, V classes, E epochs, S splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from kdrun.losses import make_loss
from kdrun.losses.head import HEAD_RULES
from kdrun.studies.findings import Claim, Table, Verdict, holds, listed
from kdrun.studies.toy.pace import PARTS, Fitted, Pace
from kdrun.studies.toy.targets import Split, far_of, nearest_half

PAPER = "AKL paper (arXiv 2404.02657)"
BOTH = ("FKL", "RKL")
NEAR = 0.01  # total variation below which a student is the teacher
MOST = 0.9  # share of the starts that makes a statement hold
SPLIT_RULE = (
    f"in at least {MOST:.0%} of the starts for every split: holds; for some: holds only when; for none: contradicted "
    f"where at most {1 - MOST:.0%} of the starts have it in most splits, else doubtful"
)


def tvd(q_NV: Tensor, p_V: Tensor) -> Tensor:
    """Total variation N between each student and the teacher, in [0, 1]."""
    return (q_NV - p_V).abs().sum(-1) / 2


def same_end(runs: Sequence[Fitted]) -> Claim:
    """Both converge to the teacher. The last run is the half Gaussian's."""
    ends = {run.target.name: [float(tvd(run.q_ENV[label][-1], run.target.p_V).max()) for label in BOTH] for run in runs}
    tail = runs[-1]
    p_V = tail.target.p_V
    losses = [float(make_loss(label.lower())(tail.q_ENV[label][-2, :1].log(), p_V[None].log())) for label in BOTH]
    return Claim(
        key="same_end",
        statement="FKL and RKL share their optimum: given enough epochs both students become the teacher.",
        source=f"{PAPER}, Figures 2 and 3",
        measured="total variation at the end, worst start, FKL and RKL: "
        + "; ".join(f"{name} {fkl:.1e} and {rkl:.1e}" for name, (fkl, rkl) in ends.items())
        + f". Half Gaussian, first start, loss of the last update / {len(p_V)} classes: {losses[0] / len(p_V):.3e} and "
        f"{losses[1] / len(p_V):.3e} nats (the paper's notebook prints 1.149e-06 and 5.116e-06)",
        tolerance=f"total variation below {NEAR:g} for every target and start",
        verdict=holds(max(max(pair) for pair in ends.values()) < NEAR),
    )


def seeking(runs: Sequence[Fitted]) -> Iterator[Claim]:
    """RKL gives up a mode, FKL fills the gap between modes: the view that the paper denies."""
    for key, statement, label, part, place, bound, (least, most) in (
        ("mode_seeking", "RKL is mode-seeking: of two modes the student gives up the lesser one.",
         "RKL", "first", "at the lesser mode", "at most half of", (0, 0.5)),
        ("mean_seeking", "FKL is mean-seeking: the student puts mass between two modes, where the teacher has little.",
         "FKL", "between", "between the modes", "at least twice", (2, inf)),
    ):  # fmt: skip
        ratios = {}  # target -> ratio_N of the student's mass to the teacher's, at the end
        for target, q_ENV in ((run.target, run.q_ENV[label]) for run in runs if run.target.modes):
            near_V = target.near_V[part]
            ratios[target.name] = q_ENV[-1] @ near_V / (target.p_V @ near_V)
        spans = [f"{name}: {float(r_N.min()):.4f} to {float(r_N.max()):.4f}" for name, r_N in ratios.items()]
        ratio_M = torch.cat(list(ratios.values()))
        sought = ((ratio_M >= least) & (ratio_M <= most)).all()
        unbiased = ((ratio_M - 1).abs() <= 0.1).all()
        yield Claim(
            key=key,
            statement=statement,
            source=f"the common view that the {PAPER} argues against, Figure 2",
            measured=f"student's mass {place} / teacher's, over the starts: {'; '.join(spans)}",
            tolerance=f"holds: {bound} the teacher's in every start; contradicted: within 10% of it in every "
            "start; else doubtful",
            verdict="holds" if sought else "contradicted" if unbiased else "doubtful",
        )


def judged(shares: Mapping[str, float]) -> tuple[Verdict, str]:
    """(verdict, condition) of a statement from the share of starts with it, split by split: SPLIT_RULE."""
    yes = [label for label, share in shares.items() if share >= MOST]
    no = [label for label in shares if label not in yes]
    if not no:
        return "holds", ""
    if yes:
        few, word = (yes, "is") if len(yes) <= len(no) else (no, "is not")
        return "holds only when", f"the split {word} {' or '.join(few)}"
    reverse = sum(1 - share >= MOST for share in shares.values())
    return ("contradicted" if reverse > len(shares) / 2 else "doubtful"), ""


def order_claims(
    cuts: Sequence[Split], paces: Mapping[str, Pace], orders: Mapping[float, Table], rate: float, epochs: Sequence[int]
) -> list[Claim]:
    """Which part FKL and RKL fit first: against each other, and each by itself."""
    by_rule = [cut for cut in cuts if cut.rule in HEAD_RULES]
    far, shown = far_of(cuts), nearest_half(cuts)

    def errors(part: str, cut: Split) -> str:
        at = [paces[label].early_BNS[part][:, 0, cuts.index(cut)].tolist() for label in BOTH]
        pairs = ", ".join(f"{fkl:.3f} and {rkl:.3f}" for fkl, rkl in zip(*at, strict=True))
        return f"sum of |p - q| on the {part} (split {cut.label}), FKL and RKL at epochs {listed(epochs)}: {pairs}"

    def halves(label: str) -> str:
        half_NS, i = paces[label].half_NS, cuts.index(shown)
        head, tail = (float(half_NS[part][:, i].median()) for part in PARTS)
        return f"median epochs to half of the start's error (split {shown.label}): head {head:.1f}, tail {tail:.1f}"

    return [
        _order_claim(key, words, figures, column=column, labels=[cut.label for cut in own], orders=orders, rate=rate)
        for key, words, figures, column, own in (
            ("fkl_head_first", "At the beginning FKL is ahead of RKL on the head.",
             errors("head", shown), "fkl_head", by_rule),
            ("rkl_tail_first", "At the beginning RKL is ahead of FKL on the tail.",
             errors("tail", shown), "rkl_tail", by_rule),
            ("rkl_far_tail_first", f"At the beginning RKL is ahead of FKL on the far tail, classes {far.mu} to "
             f"{len(far.head_V) - 1}.", errors("tail", far), "rkl_tail", [far]),
            ("fkl_own_head_first", "FKL fits the head before the tail.", halves("FKL"), "fkl_own_head", by_rule),
            ("rkl_own_tail_first", "RKL fits the tail before the head.", halves("RKL"), "rkl_own_tail", by_rule),
        )
    ]  # fmt: skip


def _order_claim(
    key: str,
    words: str,
    figures: str,
    *,
    column: str,
    labels: Sequence[str],
    orders: Mapping[float, Table],
    rate: float,
) -> Claim:
    """Judged by COLUMN_first of the order at this learning rate, or by COLUMN_half_first if it has no such column."""
    by_half = f"{column}_half_first"
    judged_by = f"{column}_first" if f"{column}_first" in orders[rate][0] else by_half
    rows = {other: {f"{row['rule']} {row['mu']:g}": row for row in table} for other, table in orders.items()}
    here = {label: rows[rate][label][judged_by] for label in labels}
    verdict, condition = judged(here)
    starts = " to ".join(f"{share:.0%}" for share in sorted({min(here.values()), max(here.values())}))
    with_it = [row["mu"] for row in orders[rate] if row["rule"] == "likeliest" and row[judged_by] >= MOST]
    counts = [sum(row[label][by_half] >= MOST for label in labels) for row in rows.values()]
    half = "the time to half of the start's error"
    return Claim(
        key=key,
        statement=words,
        source=f"{PAPER}, Figure 3, its inset" if "far" in key else f"{PAPER}, abstract and Figure 3",
        measured=f"{figures}. Starts with it, over the splits: {starts}; at least {MOST:.0%} if the "
        f"head is the k likeliest classes, k = {ranges(with_it) or 'none'}. By {half}, splits with it at learning "
        f"rates {listed(rows)}: {listed(counts)} of {len(labels)}",
        tolerance=f"{half if judged_by == by_half else 'the smaller error at every beginning epoch'}, {SPLIT_RULE}",
        verdict=verdict,
        condition=condition,
    )


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in growing order as words: `1 to 3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
