"""A divergence with a gradient as large as forward KL's, so that losses meet the optimiser on equal terms.

The size of a gradient follows the loss (JSD's is beta (1 - beta) of forward KL's near q = p, and less far from it), and
with it the learning rate of SGD, the weight beside the cross-entropy and what clipping leaves: a sweep over beta moves
all of them. Ours, from no paper.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from kdrun.losses.fkl import forward_kl_gradient
from kdrun.losses.interface import Loss, dot, teacher_of

# Of the averages, each step. Early in a run of the tiny pair the ratio of the norms falls by 5% a step (JSD beta 0.1:
# 164 at step 1, 26 at step 30), so a long memory is late: medians over steps 10 to 30 of the matched norm over forward
# KL's are 1.56 at 0.9, 1.16 at 0.5, 1.07 at 0. Below 0.5 the scatter of one batch of 8 rows grows.
DECAY = 0.5
# A gradient this much smaller than forward KL's is right to 1% in float32. One that is rounding alone, as TAID's at
# t = 0, asks for 1e7 to 2e8 and gets at most 1% of forward KL's norm.
LARGEST_FACTOR = 1e5


class MatchedGradient(Loss):
    """The nats of a divergence; its gradient in the logits times one factor for all tokens of an optimiser step.

    factor = sqrt(sum |q - p|^2 / sum |gradient|^2) over the scored tokens of earlier steps, each sum an exponential
    moving average: one factor, so the gradient of a step keeps its direction, and known before the step, so it does not
    depend on micro-batches, chunks or ranks. The first step has a preview of its own batches, which counts as an
    earlier step. Both gradients are those in the logits at the loss's temperature, without entries that are impossible
    for one of the models. At most 1e5; 1 where the divergence has no gradient, or nothing was seen.
    """

    traceable = False

    def __init__(self, loss: Loss) -> None:
        """
        Raises:
            ValueError: for a loss that needs no teacher.
        """
        if not loss.needs_teacher:
            raise ValueError(f"{type(loss).__name__.lower()} is no divergence: it has no forward KL to match")
        self.loss = loss
        self.own_squares = self.forward_squares = 0.0  # averages of both sums, of one scale: only their ratio is used
        self._measured: list[Tensor] = []  # [2], both sums of a few rows; read once a step, so no GPU is waited for

    @property
    def factor(self) -> float:
        """What the gradients of this step are multiplied by."""
        if not 0 < self.own_squares < math.inf:
            return 1.0
        return min(math.sqrt(self.forward_squares / self.own_squares), LARGEST_FACTOR)

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        nats_N = self.loss.divergence(log_q_NV, log_p_NV)
        return nats_N + (self.factor - 1) * (nats_N - nats_N.detach())

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Measures, too: every row that comes through counts once in the step's sums."""
        log_p_NV = teacher_of(self, log_p_NV)
        nats_N, gradient_NV = self.loss.with_gradient(log_q_NV, log_p_NV, target_N)
        forward_NV = forward_kl_gradient(log_q_NV, log_p_NV.exp())
        self._measured.append(torch.stack([dot(x, x).sum() for x in (gradient_NV, forward_NV)]))
        return nats_N, gradient_NV.mul_(self.factor)

    def preview(self, run: Callable[[], None]) -> None:
        if not self.own_squares:
            run()
            self._average()

    def reduce(self, add: Callable[[Sequence[float]], list[float]]) -> None:
        self._measured = [torch.tensor(add(self._sums()), dtype=torch.float64)]

    def observe(self, mean_nats: float, progress: float) -> dict[str, float]:
        """The loss's own values, and of this step: grad_factor, and grad_match, the matched norm over forward KL's.

        Then the factor is the next step's.
        """
        own, forward = self._sums()
        match = self.factor * math.sqrt(own / forward) if forward else 1.0
        values = {**self.loss.observe(mean_nats, progress), "grad_factor": self.factor, "grad_match": match}
        self._average()
        return values

    def _sums(self) -> list[float]:
        """[sum |gradient|^2, sum |q - p|^2] over what was measured since the last step."""
        if not self._measured:
            return [0.0, 0.0]
        sums: list[float] = torch.stack(self._measured).cpu().double().sum(0).tolist()
        return sums

    def _average(self) -> None:
        own, forward = self._sums()
        self._measured = []
        self.own_squares = DECAY * self.own_squares + (1 - DECAY) * own
        self.forward_squares = DECAY * self.forward_squares + (1 - DECAY) * forward

    def state_dict(self) -> dict[str, float | None]:
        """The loss's own under `loss.`, and both averages."""
        inner = {f"loss.{key}": value for key, value in self.loss.state_dict().items()}
        return {**inner, "own_squares": self.own_squares, "forward_squares": self.forward_squares}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        super().load_state_dict(state)
        own, forward = state["own_squares"], state["forward_squares"]
        if own is None or forward is None:
            raise ValueError("state of a matched gradient: own_squares and forward_squares must be numbers")
        self.loss.load_state_dict({k.removeprefix("loss."): v for k, v in state.items() if k.startswith("loss.")})
        self.own_squares, self.forward_squares, self._measured = own, forward, []
