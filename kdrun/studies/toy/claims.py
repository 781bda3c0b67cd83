"""What the sources say of the toy distributions, judged. Shapes: N starts, V classes, E epochs, S splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.losses import make_loss
from kdrun.losses.head import HEAD_RULES
from kdrun.studies.findings import Claim, Table, Verdict, holds
from kdrun.studies.toy.pace import Fitted, Pace
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


def seeking(runs: Sequence[Fitted]) -> list[Claim]:
    """RKL gives up a mode, FKL fills the gap between modes: the view that the paper denies."""
    rkl = _mass_ratios(runs, "RKL", "first")
    fkl = _mass_ratios(runs, "FKL", "between")
    source = f"the common view that the {PAPER} argues against, Figure 2"
    rest = "in every start; contradicted: within 10% of it in every start; else doubtful"
    return [
        Claim(
            key="mode_seeking",
            statement="RKL is mode-seeking: of two modes the student gives up the lesser one.",
            source=source,
            measured=f"student's mass at the lesser mode / teacher's, over the starts: {_spans(rkl)}",
            tolerance=f"holds: at most half of the teacher's {rest}",
            verdict=_verdict(torch.cat(list(rkl.values())), sought=lambda ratio_N: ratio_N <= 0.5),
        ),
        Claim(
            key="mean_seeking",
            statement="FKL is mean-seeking: the student puts mass between two modes, where the teacher has little.",
            source=source,
            measured=f"student's mass between the modes / teacher's, over the starts: {_spans(fkl)}",
            tolerance=f"holds: at least twice the teacher's {rest}",
            verdict=_verdict(torch.cat(list(fkl.values())), sought=lambda ratio_N: ratio_N >= 2),
        ),
    ]


def _mass_ratios(runs: Sequence[Fitted], label: str, part: str) -> dict[str, Tensor]:
    """target -> ratio_N of the student's mass to the teacher's near one of two modes, or between them, at the end."""
    return {
        run.target.name: run.q_ENV[label][-1] @ run.target.near_V[part] / (run.target.p_V @ run.target.near_V[part])
        for run in runs
        if run.target.modes
    }


def _spans(ratios: Mapping[str, Tensor]) -> str:
    return "; ".join(f"{name}: {float(r_N.min()):.4f} to {float(r_N.max()):.4f}" for name, r_N in ratios.items())


def _verdict(ratio_N: Tensor, *, sought: Callable[[Tensor], Tensor]) -> Verdict:
    if sought(ratio_N).all():
        return "holds"
    return "contradicted" if ((ratio_N - 1).abs() <= 0.1).all() else "doubtful"


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


@dataclass(frozen=True)
class Statement:
    """A statement on what is fitted first; columns of the order: by the beginning epochs (if any), by the half-time."""

    key: str
    words: str
    source: str
    column: str
    half_column: str
    figures: str
    splits: Sequence[Split]


def order_claims(
    cuts: Sequence[Split], paces: Mapping[str, Pace], orders: Mapping[float, Table], rate: float, epochs: Sequence[int]
) -> list[Claim]:
    """Which part FKL and RKL fit first: against each other, and each by itself."""
    by_rule = [cut for cut in cuts if cut.rule in HEAD_RULES]
    far, shown = far_of(cuts), nearest_half(cuts)

    def errors(part: str, cut: Split) -> str:
        at = [getattr(paces[label], f"{part}_BNS")[:, 0, cuts.index(cut)].tolist() for label in BOTH]
        pairs = ", ".join(f"{fkl:.3f} and {rkl:.3f}" for fkl, rkl in zip(*at, strict=True))
        return f"sum of |p - q| on the {part} (split {cut.label}), FKL and RKL at epochs {_listed(epochs)}: {pairs}"

    def halves(label: str) -> str:
        of, i = paces[label], cuts.index(shown)
        head, tail = (float(half_NS[:, i].median()) for half_NS in (of.head_half_NS, of.tail_half_NS))
        return f"median epochs to half of the start's error (split {shown.label}): head {head:.1f}, tail {tail:.1f}"

    figure = f"{PAPER}, abstract and Figure 3"
    return [
        _order_claim(statement, orders, rate)
        for statement in (
            Statement("fkl_head_first", "At the beginning FKL is ahead of RKL on the head.", figure,
                      "fkl_head_first", "fkl_head_half_first", errors("head", shown), by_rule),
            Statement("rkl_tail_first", "At the beginning RKL is ahead of FKL on the tail.", figure,
                      "rkl_tail_first", "rkl_tail_half_first", errors("tail", shown), by_rule),
            Statement("rkl_far_tail_first", f"At the beginning RKL is ahead of FKL on the far tail, classes "
                      f"{far.mu} to {len(far.head_V) - 1}.", f"{PAPER}, Figure 3, its inset",
                      "rkl_tail_first", "rkl_tail_half_first", errors("tail", far), [far]),
            Statement("fkl_own_head_first", "FKL fits the head before the tail.", figure,
                      "", "fkl_own_head_half_first", halves("FKL"), by_rule),
            Statement("rkl_own_tail_first", "RKL fits the tail before the head.", figure,
                      "", "rkl_own_tail_half_first", halves("RKL"), by_rule),
        )
    ]  # fmt: skip


def _order_claim(statement: Statement, orders: Mapping[float, Table], rate: float) -> Claim:
    labels = [cut.label for cut in statement.splits]
    column = statement.column or statement.half_column
    rows = {other: {f"{row['rule']} {row['mu']:g}": row for row in table} for other, table in orders.items()}
    here = {label: rows[rate][label][column] for label in labels}
    verdict, condition = judged(here)
    starts = " to ".join(f"{share:.0%}" for share in sorted({min(here.values()), max(here.values())}))
    with_it = [row["mu"] for row in orders[rate] if row["rule"] == "likeliest" and row[column] >= MOST]
    counts = [sum(row[label][statement.half_column] >= MOST for label in labels) for row in rows.values()]
    half = "the time to half of the start's error"
    return Claim(
        key=statement.key,
        statement=statement.words,
        source=statement.source,
        measured=f"{statement.figures}. Starts with it, over the splits: {starts}; at least {MOST:.0%} if the "
        f"head is the k likeliest classes, k = {ranges(with_it) or 'none'}. By {half}, splits with it at learning "
        f"rates {_listed(list(rows))}: {_listed(counts)} of {len(labels)}",
        tolerance=f"{'the smaller error at every beginning epoch' if statement.column else half}, {SPLIT_RULE}",
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


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
