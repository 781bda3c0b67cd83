"""The AKL paper's Figures 2 and 3: free logits fitted to distributions on a line, and which part is fitted first.

Shapes: N starts, V classes, E epochs (updates done, from 0), S splits of the classes into head and tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdrun.losses import make_loss
from kdrun.studies.contenders import Contender, Spec, contenders
from kdrun.studies.findings import Findings, Table
from kdrun.studies.fit import fit
from kdrun.studies.toy import pictures
from kdrun.studies.toy.claims import NEAR, order_claims, same_end, seeking, tvd
from kdrun.studies.toy.pace import PARTS, Fitted, Pace, order, pace
from kdrun.studies.toy.targets import Split, Target, far_of, half_gaussian, splits, two_mode_targets


def study(
    *,
    losses: Sequence[Spec],
    seed: int,
    num_starts: int,
    modes_learning_rate: float,
    modes_epochs: Sequence[int],
    tail_learning_rate: float,
    tail_epochs: Sequence[int],
    tail_steps: int,
    other_learning_rates: Sequence[float],
    mus: Sequence[float],
    thresholds: Sequence[float],
    far_tail_from: int,
    begin: Callable[[int], Callable[..., None]],
) -> Findings:
    """Who converges to what, and whether FKL fits the head and RKL the tail first; Adam, all starts side by side."""
    named = contenders(losses)
    rivals = [contender for contender in named if contender.label in ("FKL", "RKL")]
    modes = two_mode_targets(seed=seed, num_starts=num_starts)
    tail = half_gaussian(seed=seed, num_starts=num_starts)
    rates = sorted({tail_learning_rate, *other_learning_rates})
    num_tail_fits = len(named) + len(rivals) * (len(rates) - 1)
    advance = begin(len(modes) * len(named) * modes_epochs[-1] + num_tail_fits * tail_steps)

    def fitted(target: Target, losses: Sequence[Contender], learning_rate: float, num_steps: int) -> Fitted:
        students = {}
        for contender in losses:
            students[contender.label] = fit_free_logits(target, contender, learning_rate, num_steps)
            advance(num_steps)
        return Fitted(target, learning_rate, students)

    on_modes = [fitted(target, named, modes_learning_rate, modes_epochs[-1]) for target in modes]
    cuts = splits(tail.p_V, mus=mus, thresholds=thresholds, far_tail_from=far_tail_from)
    head_SV = torch.stack([cut.head_V for cut in cuts])
    first_epochs = tail_epochs[:-1]
    paces: dict[float, dict[str, Pace]] = {}
    for rate in rates:
        run = fitted(tail, named if rate == tail_learning_rate else rivals, rate, tail_steps)
        paces[rate] = {label: pace(q_ENV, tail.p_V, head_SV, first_epochs) for label, q_ENV in run.q_ENV.items()}
        if rate == tail_learning_rate:
            on_tail = run
    orders = {rate: order(cuts, of["FKL"], of["RKL"]) for rate, of in paces.items()}
    return Findings(
        claims=[
            same_end([*on_modes, on_tail]),
            *seeking(on_modes),
            *order_claims(cuts, paces[tail_learning_rate], orders, tail_learning_rate, first_epochs),
        ],
        tables={
            "convergence": [row for run in (*on_modes, on_tail) for row in _convergence(run)],
            "errors": _errors(cuts, paces[tail_learning_rate], first_epochs),
            "order": [{"learning_rate": rate, **row} for rate, rows in orders.items() for row in rows],
        },
        pictures=[
            pictures.modes_picture(named, on_modes, modes_epochs),
            pictures.tail_picture(named, on_tail, tail_epochs, far_of(cuts)),
            pictures.errors_picture(named, on_tail, cuts),
            pictures.ahead_picture(cuts, paces, tail_learning_rate, first_epochs),
            pictures.own_picture(named, cuts, paces[tail_learning_rate]),
        ],
        animations=pictures.animations(named, on_modes[0], on_tail, last_epoch=tail_epochs[-1], far=far_of(cuts)),
    )


def fit_free_logits(target: Target, contender: Contender, learning_rate: float, num_steps: int) -> Tensor:
    """q_ENV: the student of every start after 0, 1, .., num_steps updates by Adam."""
    logits_NV = target.starts_NV.clone().requires_grad_()
    q_ENV = target.starts_NV.new_empty(num_steps + 1, *logits_NV.shape)

    def look(step: int, seen_NV: Tensor) -> None:
        torch.softmax(seen_NV, -1, out=q_ENV[step])

    fit(
        contender.loss(), lambda: logits_NV, target.p_V.log().expand_as(logits_NV),
        optimizer=torch.optim.Adam([logits_NV], lr=learning_rate), num_steps=num_steps, look=look,
    )  # fmt: skip
    return q_ENV


def _convergence(run: Fitted) -> Table:
    p_V = run.target.p_V
    rows = []
    for label, q_ENV in run.q_ENV.items():
        pair = q_ENV[-1].log(), p_V.log().expand_as(q_ENV[-1])
        nats = {name: make_loss(name)(*pair) for name in ("fkl", "rkl")}
        epochs_E1 = torch.arange(len(q_ENV), dtype=torch.float64)[:, None]
        epochs_N = torch.where(tvd(q_ENV, p_V) < NEAR, epochs_E1, torch.inf).amin(0)
        rows.append({
            "target": run.target.name, "learning_rate": run.learning_rate, "epochs": len(q_ENV) - 1, "loss": label,
            **{f"{name}_nats_first_start": float(nats_N[0]) for name, nats_N in nats.items()},
            **{f"{name}_nats_worst_start": float(nats_N.max()) for name, nats_N in nats.items()},
            "tvd_worst_start": float(tvd(q_ENV[-1], p_V).max()),
            f"median_epochs_to_tvd_{NEAR:g}": float(epochs_N.median()),
        })  # fmt: skip
    return rows


def _errors(cuts: Sequence[Split], paces: dict[str, Pace], epochs: Sequence[int]) -> Table:
    """The errors of every loss at the beginning epochs, and the epochs to half of the start's."""
    return [
        {
            "rule": cut.rule, "mu": cut.mu, "loss": label, "epoch": epoch,
            **{f"{part}_first_start": float(of.early_BNS[part][b, 0, i]) for part in PARTS},
            **{f"{part}_mean": float(of.early_BNS[part][b, :, i].mean()) for part in PARTS},
            **{f"{part}_half_epochs_median": float(of.half_NS[part][:, i].median()) for part in PARTS},
        }
        for i, cut in enumerate(cuts)
        for label, of in paces.items()
        for b, epoch in enumerate(epochs)
    ]  # fmt: skip
