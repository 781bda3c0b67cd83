"""The toy distributions of the AKL paper, the students' starts, and the splits of the classes into head and tail.

Settings from the notebooks beside the paper's code (toy_examples/FR_KL.ipynb, FR_compare.ipynb). Shapes: N starts,
V classes, S splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from kdrun.losses.head import head_share

MODES = ((25, 75, 10), (50, 50, 15), (25, 74, 15))  # means of the two Gaussians, their one deviation


@dataclass(frozen=True)
class Target:
    """A teacher's distribution in float64 and the logits that students start from.

    x_V: the places of the classes on the axis `x_label` of pictures; modes: where two modes are on it.
    """

    name: str
    x_label: str
    x_V: Tensor
    p_V: Tensor
    starts_NV: Tensor
    modes: tuple[int, int] | None = None

    @property
    def near_V(self) -> dict[str, Tensor]:
        """{"first", "second", "between"}: 1 for classes nearest to that mode, or to the middle between them."""
        first, second = self.modes or (0, 0)
        places = {"first": first, "second": second, "between": (first + second) / 2}
        nearest_V = torch.stack([(self.x_V - place).abs() for place in places.values()]).argmin(0)
        return {name: (nearest_V == i).to(self.x_V.dtype) for i, name in enumerate(places)}


@dataclass(frozen=True)
class Split:
    """The classes in two: 1 or 0 in head_V. mu: the rule's border. mass: of the teacher's head. Label: `code 0.5`."""

    rule: str
    mu: float
    head_V: Tensor
    mass: float

    @property
    def label(self) -> str:
        """Rule and border."""
        return f"{self.rule} {self.mu:g}"

    @property
    def num_head(self) -> int:
        """Classes in the head."""
        return int(self.head_V.sum())


def two_mode_targets(*, seed: int, num_starts: int) -> list[Target]:
    """0.3 N(m1, s) + 0.5 N(m2, s) on 50 classes at 0, 2, .., 98, normalised (Figure 2 and a third that it leaves out).

    Starts are U(0, 1) from one stream, drawn target after target: with seed 1 the first are those of the paper's
    panels at epoch 1, the second those at epoch 200 (the notebook starts anew for them).
    """
    x_V = torch.arange(50, dtype=torch.float64) * 2
    starts_NMV = torch.rand(num_starts, len(MODES), 50, generator=torch.Generator().manual_seed(seed)).double()
    targets = []
    for i, (first, second, deviation) in enumerate(MODES):
        p_V = 0.3 * _density(x_V, first, deviation) + 0.5 * _density(x_V, second, deviation)
        modes = (first, second) if first != second else None
        name = (
            f"Modes at {first} and {second}, width {deviation}" if modes else f"One mode at {first}, width {deviation}"
        )
        targets.append(Target(name, "x (a class every 2)", x_V, p_V / p_V.sum(), starts_NMV[:, i], modes))
    return targets


def half_gaussian(*, seed: int, num_starts: int) -> Target:
    """N(0, 16) on 80 classes at 0, 1.25, .., 98.75, each times 1 + 0.01 U(0, 1), normalised (Figure 3).

    The notebook's noise is unseeded; here it is the second draw, so that the first start is the notebook's.
    """
    class_V = torch.arange(80, dtype=torch.float64)
    draws = torch.rand(1 + num_starts, 80, generator=torch.Generator().manual_seed(seed)).double()
    p_V = _density(1.25 * class_V, 0, 16) * (1 + 0.01 * draws[1])
    starts_NV = torch.cat((draws[:1], draws[2:]))
    return Target("Half Gaussian, width 12.8 classes", "class", class_V, p_V / p_V.sum(), starts_NV)


def _density(x_V: Tensor, mean: float, deviation: float) -> Tensor:
    return Normal(torch.tensor(mean, dtype=x_V.dtype), deviation).log_prob(x_V).exp()


def splits(p_V: Tensor, *, mus: Sequence[float], thresholds: Sequence[float], far_tail_from: int) -> list[Split]:
    """Every split by AKL's head rules that leaves a head and a tail, then the far tail, then every number of classes.

    Rules: `code` and `paper` with each mass mu; `pointwise` with each probability; `class`: the tail is every class
    from that one on, as in the inset of Figure 3; `likeliest`: the head is that many of the likeliest classes.
    """
    place_V = p_V.argsort(descending=True).argsort()
    heads = [(rule, mu, head_share(p_V[None], mu=mu, head=rule)[0]) for rule in ("code", "paper") for mu in mus]
    heads += [("pointwise", mu, head_share(p_V[None], mu=mu, head="pointwise")[0]) for mu in thresholds]
    heads.append(("class", far_tail_from, (torch.arange(len(p_V)) < far_tail_from).to(p_V.dtype)))
    heads += [("likeliest", number, (place_V < number).to(p_V.dtype)) for number in range(1, len(p_V))]
    return [
        Split(rule, mu, head_V, float(head_V @ p_V)) for rule, mu, head_V in heads if 0 < head_V.sum() < len(head_V)
    ]


def nearest_half(cuts: Sequence[Split]) -> Split:
    """The split by the rule `paper` with mu nearest to AKL's own 1/2: the one that is shown in words and pictures."""
    found: Split = min((cut for cut in cuts if cut.rule == "paper"), key=lambda cut: abs(cut.mu - 0.5))
    return found


def far_of(cuts: Sequence[Split]) -> Split:
    """The split whose tail is the far tail."""
    (found,) = (cut for cut in cuts if cut.rule == "class")
    return found
