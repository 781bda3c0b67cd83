"""How fast a student's error on the head and on the tail falls.

Shapes: N starts, V classes, E epochs (updates done, from 0), B the beginning epochs, S splits into head and tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.studies.toy.targets import Split, Target

PARTS = ("head", "tail")


@dataclass(frozen=True)
class Fitted:
    """The students of one target: q_ENV of each loss, under its label."""

    target: Target
    learning_rate: float
    q_ENV: Mapping[str, Tensor]


@dataclass(frozen=True)
class Pace:
    """By part: the errors at the beginning epochs, and the epochs until half of the start's error is left."""

    early_BNS: Mapping[str, Tensor]
    half_NS: Mapping[str, Tensor]


def pace(q_ENV: Tensor, p_V: Tensor, head_SV: Tensor, epochs: Sequence[int]) -> Pace:
    """The pace on every split; `epochs` are the beginning ones."""
    error_ENS = dict(zip(PARTS, gaps(q_ENV, p_V, head_SV), strict=True))
    return Pace(
        {part: error_ENS[part][list(epochs)] for part in PARTS}, {part: half_time(error_ENS[part]) for part in PARTS}
    )


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
        "fkl_head_first": (fkl.early_BNS["head"] < rkl.early_BNS["head"]).all(0),
        "rkl_tail_first": (rkl.early_BNS["tail"] < fkl.early_BNS["tail"]).all(0),
        "fkl_head_half_first": fkl.half_NS["head"] < rkl.half_NS["head"],
        "rkl_tail_half_first": rkl.half_NS["tail"] < fkl.half_NS["tail"],
        "fkl_own_head_half_first": fkl.half_NS["head"] < fkl.half_NS["tail"],
        "rkl_own_tail_half_first": rkl.half_NS["tail"] < rkl.half_NS["head"],
    }
    return [
        {
            "rule": cut.rule, "mu": cut.mu, "head_classes": cut.num_head, "head_mass": cut.mass,
            **{name: float(with_NS[:, i].double().mean()) for name, with_NS in shares.items()},
        }
        for i, cut in enumerate(cuts)
    ]  # fmt: skip
