"""How fast a student's error on the head and on the tail falls.

Shapes: N starts, V classes, E epochs (updates done, from 0), B the beginning epochs, S splits into head and tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.studies.toy.targets import Split, Target


@dataclass(frozen=True)
class Fitted:
    """The students of one target: q_ENV of each loss, under its label."""

    target: Target
    learning_rate: float
    q_ENV: Mapping[str, Tensor]


@dataclass(frozen=True)
class Pace:
    """The errors at the beginning epochs, and the epochs until half of the start's error is left."""

    head_BNS: Tensor
    tail_BNS: Tensor
    head_half_NS: Tensor
    tail_half_NS: Tensor


def pace(q_ENV: Tensor, p_V: Tensor, head_SV: Tensor, epochs: Sequence[int]) -> Pace:
    """The pace on every split; `epochs` are the beginning ones."""
    head_ENS, tail_ENS = gaps(q_ENV, p_V, head_SV)
    at = list(epochs)
    return Pace(head_ENS[at], tail_ENS[at], half_time(head_ENS), half_time(tail_ENS))


def gaps(q_ENV: Tensor, p_V: Tensor, head_SV: Tensor) -> tuple[Tensor, Tensor]:
    """(head_ENS, tail_ENS): sums of abs(p - q) over each split's head and tail, each in [0, 2]."""
    gap_ENV = (q_ENV - p_V).abs()
    return gap_ENV @ head_SV.T, gap_ENV @ (1 - head_SV).T


def half_time(error_ENS: Tensor) -> Tensor:
    """Epochs until an error first is half of its start, by start and split; linear in between, inf where never."""
    half_NS = error_ENS[0] / 2
    reached_ENS = error_ENS <= half_NS
    after_1NS = reached_ENS.to(torch.uint8).argmax(0, keepdim=True)
    above_NS, below_NS = (error_ENS.gather(0, at_1NS)[0] for at_1NS in ((after_1NS - 1).clamp(min=0), after_1NS))
    epochs_NS = after_1NS[0] - 1 + (above_NS - half_NS) / (above_NS - below_NS)
    return torch.where(reached_ENS.any(0), epochs_NS, torch.inf)


def order(cuts: Sequence[Split], fkl: Pace, rkl: Pace) -> list[dict[str, str | float]]:
    """One row a split: the shares of the starts, in [0, 1], with each statement on what FKL and RKL fit first.

    `half`: judged by the time to half of the start's error; else by the smaller error at every beginning epoch.
    """
    shares = {
        "fkl_head_first": (fkl.head_BNS < rkl.head_BNS).all(0),
        "rkl_tail_first": (rkl.tail_BNS < fkl.tail_BNS).all(0),
        "fkl_head_half_first": fkl.head_half_NS < rkl.head_half_NS,
        "rkl_tail_half_first": rkl.tail_half_NS < fkl.tail_half_NS,
        "fkl_own_head_half_first": fkl.head_half_NS < fkl.tail_half_NS,
        "rkl_own_tail_half_first": rkl.tail_half_NS < rkl.head_half_NS,
    }
    return [
        {
            "rule": cut.rule, "mu": cut.mu, "head_classes": cut.num_head, "head_mass": cut.mass,
            **{name: float(with_NS[:, i].double().mean()) for name, with_NS in shares.items()},
        }
        for i, cut in enumerate(cuts)
    ]  # fmt: skip
