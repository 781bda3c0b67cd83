"""The learning rate in disguise: JSD over beta, trained as it is and with its gradient as large as forward KL's.

Free logits over a few tokens. SGD's step is as large as the gradient; Adam's is not, until another term stands beside
the divergence. Shapes: N tokens, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kdrun.losses import Loss, divergence_diagnostics, make_loss
from kdrun.losses.interface import log_softmax
from kdrun.losses.matched import MatchedGradient
from kdrun.studies.findings import Claim, Table, holds, rows_with
from kdrun.studies.fit import fit
from kdrun.studies.losses.pairs import Pair, noisy_pairs
from kdrun.studies.pictures import Curve, Panel, Picture

NUM_TOKENS, NUM_CLASSES = 8, 200
NUM_STEPS = 100
SGD_LR, ADAM_LR = 1.0, 0.05
KD_RATIO = 0.5
KINDS = AS_IT_IS, DIVIDED, MATCHED = ("JSD", "JSD / (beta (1 - beta))", "JSD, gradient matched to FKL's")
SAME_END = 0.05  # relative
SAME_ORDER = 0.9  # Spearman's correlation of two orders that count as one


@dataclass(frozen=True)
class Setting:
    """How the betas are compared; below a kd_ratio of 1, beside cross-entropy on drawn targets."""

    key: str
    words: str
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    kd_ratio: float = 1.0


SETTINGS = (
    Setting("sgd", f"SGD, learning rate {SGD_LR:g}", partial(torch.optim.SGD, lr=SGD_LR)),
    Setting("adam", f"Adam, learning rate {ADAM_LR:g}", partial(torch.optim.Adam, lr=ADAM_LR)),
    Setting("adam-and-data", f"Adam at kd_ratio {KD_RATIO:g}", partial(torch.optim.Adam, lr=ADAM_LR), KD_RATIO),
)


class Weighed(Loss):
    """weight times a divergence, and data_weight times cross-entropy on fixed targets, as training mixes them."""

    def __init__(self, divergence: Loss, *, weight: float, data_weight: float, target_N: Tensor) -> None:
        self.inner, self.weight, self.data_weight, self.target_N = divergence, weight, data_weight, target_N

    def __call__(
        self, student_logits_NV: Tensor, teacher_logits_NV: Tensor | None = None, target_N: Tensor | None = None
    ) -> Tensor:
        """nats_N; the targets are those given at the start."""
        nats_N = self.weight * self.inner(student_logits_NV, teacher_logits_NV)
        if self.data_weight:
            nats_N = nats_N + self.data_weight * make_loss("sft")(student_logits_NV, None, self.target_N)
        return nats_N

    def observe(self, mean_nats: float, progress: float) -> dict[str, float]:
        return self.inner.observe(mean_nats, progress)


def num_fits(betas: Sequence[float]) -> int:
    """How often `distances_left` calls `advance`."""
    return len(SETTINGS) * len(betas) * len(KINDS)


def distances_left(betas: Sequence[float], *, noise_std: float, seed: int, advance: Callable[..., None]) -> Table:
    """One row a setting, beta and kind: TVD and both KLs to the teacher after NUM_STEPS, means of the tokens."""
    pair = noisy_pairs(NUM_TOKENS, vocabulary=NUM_CLASSES, noise_std=noise_std, seed=seed)
    p_NV = log_softmax(pair[1]).exp()
    target_N = torch.multinomial(p_NV, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    rows = []
    for setting, beta, kind in product(SETTINGS, betas, KINDS):
        ended = _trained(setting, kind, beta, pair, target_N)
        means = {name: float(ended[name].mean()) for name in ("fkl", "rkl", "tvd")}
        rows.append({"setting": setting.key, "beta": beta, "kind": kind, **means})
        advance()
    return rows


def _trained(setting: Setting, kind: str, beta: float, pair: Pair, target_N: Tensor) -> dict[str, Tensor]:
    """`divergence_diagnostics` of the student at the end."""
    logits_NV, teacher_NV = pair[0].clone().requires_grad_(), pair[1]
    divergence: Loss = make_loss("jsd", beta=beta)
    if kind == MATCHED:
        divergence = MatchedGradient(divergence)

        def run() -> None:
            divergence(logits_NV, teacher_NV)

        divergence.preview(run)
    factor = 1 / (beta * (1 - beta)) if kind == DIVIDED else 1.0
    weight = factor * setting.kd_ratio
    loss = Weighed(divergence, weight=weight, data_weight=1 - setting.kd_ratio, target_N=target_N)
    fit(loss, lambda: logits_NV, teacher_NV, optimizer=setting.optimizer([logits_NV]), num_steps=NUM_STEPS)
    return divergence_diagnostics(logits_NV.detach(), teacher_NV)


def agreement(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's correlation of two columns without ties: 1 for one order, -1 for the reverse."""
    ranks = torch.tensor([left, right], dtype=torch.float64).argsort(dim=1).argsort(dim=1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def disguise_claims(rows: Table, *, noise_std: float) -> Iterator[Claim]:
    """Whether the order of the betas is the losses' own, setting by setting; whether Adam sees a constant factor."""
    for setting in SETTINGS:
        plain, divided, matched = (_column(rows, setting.key, kind) for kind in KINDS)
        start = f"{NUM_TOKENS} tokens of {NUM_CLASSES} classes, student off by noise of std {noise_std:g}, "
        if setting.key == "adam":
            apart = max(abs(divided[beta] / plain[beta] - 1) for beta in plain)
            yield Claim(
                "disguise-adam",
                "Adam does not see a constant factor of a divergence that is the whole objective.",
                "Kingma and Ba, arXiv 1412.6980, Section 2.1: steps do not depend on the gradient's scale",
                f"{start}{NUM_STEPS} steps: JSD and JSD / (beta (1 - beta)) end with KL(teacher || student) at "
                f"most {apart:.1%} apart, over beta {min(plain):g} to {max(plain):g}; a factor that follows "
                f"forward KL's gradient step by step is felt: {_summary(plain)} becomes {_summary(matched)}",
                f"at most {SAME_END:.0%} apart",
                holds(apart <= SAME_END),
            )
            continue
        agree = agreement(list(plain.values()), list(matched.values()))
        yield Claim(
            f"disguise-{setting.key}",
            f"With {setting.words}, a sweep of JSD over beta orders the betas by what the losses ask for.",
            "implied by sweeps over beta at one learning rate, e.g. GKD, arXiv 2306.13649",
            f"{start}{NUM_STEPS} steps, KL(teacher || student) left: {_summary(plain)}; gradients matched to "
            f"forward KL's: {_summary(matched)}; Spearman's correlation of the two orders {agree:.2f}",
            f"correlation at least {SAME_ORDER:g}",
            holds(agree >= SAME_ORDER),
        )


def disguise_picture(rows: Table) -> Picture:
    """KL left against beta, one panel a setting."""
    panels = []
    for setting in SETTINGS:
        columns = [_column(rows, setting.key, kind) for kind in KINDS]
        curves = [
            Curve(kind, list(column), list(column.values()), look)
            for look, (kind, column) in enumerate(zip(KINDS, columns, strict=True))
        ]
        panels.append(Panel(setting.words, "beta of JSD", "KL(teacher || student) left (nats)", curves, log_y=True))
    title = f"What a sweep over beta finds after {NUM_STEPS} steps, and what the size of the gradient did"
    return Picture("disguise", title, panels, columns=3)


def _column(rows: Table, setting: str, kind: str) -> dict[float, float]:
    """beta -> KL(teacher || student) left."""
    return {row["beta"]: row["fkl"] for row in rows_with(rows, setting=setting, kind=kind)}


def _summary(column: dict[float, float]) -> str:
    best, worst = min(column, key=lambda beta: column[beta]), max(column, key=lambda beta: column[beta])
    return (
        f"least {column[best]:.3g} nats at beta {best:g}, most {column[worst]:.3g} at {worst:g} "
        f"({column[worst] / column[best]:.2f}-fold)"
    )
