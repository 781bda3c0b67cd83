"""Descent on the losses: SGD on forward KL beside the bound of Zhong 2025, Theorem 4.1, and where LBFGS ends.

Shapes: R runs or starts side by side, N teachers, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.losses import make_loss
from kdrun.studies.fit import fit
from kdrun.studies.theory.pairs import normal

SMOOTHNESS = 0.5  # L: forward KL's Hessian diag(q) - q q' has no eigenvalue above 1/2
STEP_SIZES = (0.1, 1.0, 2.0)  # gamma; the theorem wants at most 1 / L = 2
NUM_TEACHERS, SGD_CLASSES, SGD_SCALE = 16, 5, 2.0
NUM_RUNS, NUM_STEPS = 64, 200
START_CLASSES = 10
START_SCALES = (1.0, 4.0)  # standard deviation of the student's logits at the start; the teacher's is 1


@dataclass(frozen=True)
class Descent:
    """SGD with one step size. For T = 1 .. NUM_STEPS: the mean squared gradient norm of the first T iterates and the
    theorem's bound, both means over the runs. variance: s^2, exact; drawn_variance: of the gradients that were used."""

    step_size: float
    mean_square_T: Tensor
    bound_T: Tensor
    variance: float
    drawn_variance: float


def sgd_on_forward_kl(step_size: float, *, seed: int, smoothness: float = SMOOTHNESS) -> Descent:
    """SGD on f(z) = mean over N teachers of KL(p_i || softmax(z)), each update on one teacher drawn at random.

    The stochastic gradient q - p_i has mean q - mean(p), the gradient of f, and variance s^2 = mean over i of
    ||p_i - mean(p)||^2 at every z. The bound: 2 (f_0 - f_T) / (gamma T) + gamma L s^2.
    """
    generator = torch.Generator().manual_seed(seed)
    teachers_NV = normal(NUM_TEACHERS, SGD_CLASSES, scale=SGD_SCALE, generator=generator)
    p_NV = teachers_NV.softmax(-1)
    mean_p_V = p_NV.mean(0)
    deviation_N = (p_NV - mean_p_V).square().sum(-1)
    start_V = normal(1, SGD_CLASSES, scale=SGD_SCALE, generator=generator)
    logits_RV = start_V.repeat(NUM_RUNS, 1).requires_grad_()
    drawn_RV = torch.empty_like(logits_RV, requires_grad=False)
    values, squares, drawn = [], [], []

    def look(_: int, now_RV: Tensor) -> None:
        """Measures every run, then draws its teacher for the update that follows."""
        nats_RN = make_loss("fkl")(now_RV.repeat_interleave(NUM_TEACHERS, 0), teachers_NV.repeat(NUM_RUNS, 1))
        values.append(nats_RN.mean())
        squares.append((now_RV.softmax(-1) - mean_p_V).square().sum(-1).mean())
        picked_R = torch.randint(NUM_TEACHERS, (NUM_RUNS,), generator=generator)
        drawn.append(deviation_N[picked_R].mean())
        drawn_RV.copy_(teachers_NV[picked_R])  # `fit` reads it anew at every update

    fit(
        make_loss("fkl"), lambda: logits_RV, drawn_RV,
        optimizer=torch.optim.SGD([logits_RV], lr=step_size), num_steps=NUM_STEPS, look=look,
    )  # fmt: skip
    steps_T = torch.arange(1, NUM_STEPS + 1, dtype=torch.float64)
    variance = float(deviation_N.mean())
    return Descent(
        step_size,
        torch.stack(squares[:-1]).cumsum(0) / steps_T,
        2 * (values[0] - torch.stack(values[1:])) / (step_size * steps_T) + step_size * smoothness * variance,
        variance,
        float(torch.stack(drawn[:-1]).mean()),
    )


@dataclass(frozen=True)
class Minimum:
    """Where LBFGS ended from R starts of one scale: max abs(q - p) and the gradient's norm there."""

    loss: str
    line_search: bool
    start_scale: float
    error_R: Tensor
    gradient_R: Tensor


def minima(names: Sequence[str], *, num_starts: int, seed: int, advance: Callable[[], None]) -> list[Minimum]:
    """Each loss from each scale of starts, with a line search; AKL also with LBFGS's full steps and no line search.

    Every start has an optimiser of its own: a line search is one decision for all rows together.
    """
    cases = [(name, True) for name in names] + [("akl", False)] * ("akl" in names)
    found = []
    for scale in START_SCALES:
        generator = torch.Generator().manual_seed(seed)
        teacher_RV = normal(num_starts, START_CLASSES, scale=1, generator=generator)
        start_RV = normal(num_starts, START_CLASSES, scale=scale, generator=generator)
        pairs = list(zip(start_RV.split(1), teacher_RV.split(1), strict=True))
        for name, line_search in cases:
            ends = [_descend(name, *pair, line_search=line_search) for pair in pairs]
            error_R, gradient_R = torch.tensor(ends, dtype=torch.float64).T
            found.append(Minimum(name, line_search, scale, error_R, gradient_R))
            advance()
    return found


def num_minima(names: Sequence[str]) -> int:
    """How often `minima` advances."""
    return len(START_SCALES) * (len(names) + ("akl" in names))


def _descend(name: str, start_1V: Tensor, teacher_1V: Tensor, *, line_search: bool) -> tuple[float, float]:
    logits_1V = start_1V.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits_1V], max_iter=300, max_eval=1000, tolerance_grad=1e-9, tolerance_change=0, history_size=10,
        line_search_fn="strong_wolfe" if line_search else None,
    )  # fmt: skip
    fit(make_loss(name), lambda: logits_1V, teacher_1V, optimizer=optimizer, num_steps=1)
    (gradient_1V,) = torch.autograd.grad(make_loss(name)(logits_1V, teacher_1V).sum(), logits_1V)
    error_1V = logits_1V.detach().softmax(-1) - teacher_1V.softmax(-1)
    return float(error_1V.abs().max()), float(gradient_1V.norm())
