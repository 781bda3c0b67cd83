"""Gaussians and mixtures of them, discretised and fitted to others side by side.

Shapes: N fits, K components, V points of the line, S = steps + 1 looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from kdrun.losses import Loss
from kdrun.studies.fit import fit

REACH = 8.0  # the line is [-REACH, REACH]
NUM_POINTS = 801
SPACING = 2 * REACH / (NUM_POINTS - 1)


@dataclass(frozen=True)
class Path:
    """Fits from start to end: the parameters after 0, 1, .., S - 1 updates, and the total variation to the teacher."""

    means_SNK: Tensor
    sigmas_SNK: Tensor
    shares_SNK: Tensor
    tvd_SN: Tensor

    def gaussian(self, row: int) -> tuple[float, float]:
        """Mean and sigma of a fit's first component, at its end."""
        return float(self.means_SNK[-1, row, 0]), float(self.sigmas_SNK[-1, row, 0])

    def density_V(self, step: int, row: int) -> Tensor:
        """The density of one fit after so many updates, per unit of length."""
        chosen = (x[step, row][None] for x in (self.means_SNK, self.sigmas_SNK, self.shares_SNK))
        return density_V(log_density_NV(*chosen)[0])

    def steps_below(self, distance: float) -> list[float]:
        """Updates until the total variation is first below `distance`, a fit each; inf where it never is."""
        steps_S1 = torch.arange(len(self.tvd_SN), dtype=torch.float64)[:, None]
        return torch.where(self.tvd_SN < distance, steps_S1, torch.inf).amin(0).tolist()


def points_V() -> Tensor:
    """The line, in float64."""
    return torch.linspace(-REACH, REACH, NUM_POINTS, dtype=torch.float64)


def log_density_NV(means_NK: Tensor, sigmas_NK: Tensor, shares_NK: Tensor) -> Tensor:
    """Log density of mixtures on the line, up to a constant: logits whose softmax is the discretised mixture."""
    scaled_NKV = (points_V() - means_NK[..., None]) / sigmas_NK[..., None]
    parts_NKV = (shares_NK.log() - sigmas_NK.log())[..., None] - scaled_NKV**2 / 2
    return reduce(torch.logaddexp, parts_NKV.unbind(1))  # logsumexp over K takes 3 times as long


def density_V(logits_V: Tensor) -> Tensor:
    """Probability per unit of length, on the points of the line."""
    return logits_V.softmax(-1) / SPACING


def fit_gaussians(
    loss: Loss,
    start_means_NK: Tensor,
    start_sigmas_NK: Tensor,
    teacher_logits_NV: Tensor,
    *,
    learning_rate: float,
    num_steps: int,
    eps: float = 1e-8,
) -> Path:
    """Mixtures of K equal shares at the start, fitted by Adam in mean, log sigma and the logits of the shares.

    eps: Adam's. At its usual value Adam never rests: near a minimum it divides by ever smaller gradients, and jumps.
    """
    means_NK = start_means_NK.clone().requires_grad_()
    log_sigmas_NK = start_sigmas_NK.log().requires_grad_()
    share_logits_NK = torch.zeros_like(start_means_NK).requires_grad_()
    p_NV = teacher_logits_NV.softmax(-1)
    seen: list[tuple[Tensor, ...]] = []

    def logits_NV() -> Tensor:
        return log_density_NV(means_NK, log_sigmas_NK.exp(), share_logits_NK.softmax(-1))

    def look(step: int, student_logits_NV: Tensor) -> None:
        tvd_N = (student_logits_NV.softmax(-1) - p_NV).abs().sum(-1) / 2
        seen.append((means_NK.clone(), log_sigmas_NK.exp(), share_logits_NK.softmax(-1), tvd_N))

    optimizer = torch.optim.Adam([means_NK, log_sigmas_NK, share_logits_NK], lr=learning_rate, eps=eps)
    fit(loss, logits_NV, teacher_logits_NV, optimizer=optimizer, num_steps=num_steps, look=look)
    return Path(*(torch.stack(parts).detach() for parts in zip(*seen, strict=True)))


def nats(loss: Loss, path: Path, teacher_logits_NV: Tensor) -> list[float]:
    """The loss of every fit at its end."""
    ends = log_density_NV(path.means_SNK[-1], path.sigmas_SNK[-1], path.shares_SNK[-1])
    return loss(ends, teacher_logits_NV).tolist()


def stillness(loss: Loss, mean: float, sigma: float, teacher_logits_V: Tensor) -> tuple[float, float]:
    """(norm of the gradient, least curvature) of the loss of one Gaussian, in (mean, log sigma).

    At a minimum the first is 0 and the second positive. The curvature is the least eigenvalue of the Hessian, taken by
    central differences of the gradient: losses give a first derivative only.
    """
    here = torch.tensor([mean, sigma], dtype=torch.float64)
    here[1] = here[1].log()
    step = 1e-4  # error of the differences about step^2, and 1e-16 / step of the gradient
    moves_N2 = torch.cat([torch.zeros(1, 2), step * torch.eye(2), -step * torch.eye(2)]).double()
    at_N2 = (here + moves_N2).requires_grad_()
    one_N1 = torch.ones(len(at_N2), 1, dtype=torch.float64)
    logits_NV = log_density_NV(at_N2[:, :1], at_N2[:, 1:].exp(), one_N1)
    loss(logits_NV, teacher_logits_V.expand_as(logits_NV)).sum().backward()
    assert at_N2.grad is not None
    hessian_22 = (at_N2.grad[1:3] - at_N2.grad[3:5]) / (2 * step)
    return float(at_N2.grad[0].norm()), float(torch.linalg.eigvalsh((hessian_22 + hessian_22.T) / 2)[0])
