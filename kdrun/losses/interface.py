"""The one interface of the losses: the scored tokens of one chunk in, nats per token out.

Shapes: N scored tokens, V vocabulary. Names: p = softmax(teacher logits), q = softmax(student logits).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdrun.losses.row_blocks import row_blocks

if TYPE_CHECKING:
    from kdrun.losses.written import TokenWeights, WrittenText

# Log-probability of a dropped entry: exp(-1e4) is 0 even in float64, and -1e4 - (-1e4) is 0 where -inf - (-inf) is nan.
DROPPED_LOG_PROB = -1e4

WithGradient = Callable[["Loss", Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


class Loss:
    """Nats per token; no shift, no mask, no mean, no count. A subclass overrides `divergence`.

    Gradient flows to the student only. Vocabulary entries whose student or teacher logit is -inf add nothing.
    """

    needs_teacher: ClassVar[bool] = True
    # Whether merging vocabulary entries can only lessen it: then it can be taken on the likeliest entries and a rest.
    is_f_divergence: ClassVar[bool] = False
    # Whether torch can compile `with_gradient`: no search for as long as it takes, no code of another language.
    traceable: bool = True
    # What the one division is by: all scored tokens of an optimiser step, or its texts (rows).
    mean_over: Literal["tokens", "texts"] = "tokens"

    def __call__(
        self, student_logits_NV: Tensor, teacher_logits_NV: Tensor | None = None, target_N: Tensor | None = None
    ) -> Tensor:
        """nats_N in float32 (float64 if a logit tensor is float64), differentiable in the student's logits."""
        if not self.needs_teacher:
            return self.from_log_probs(log_softmax(student_logits_NV), None, target_N)
        if teacher_logits_NV is None:
            raise ValueError(f"{type(self).__name__.lower()} compares with a teacher: teacher_logits_NV is missing")
        if student_logits_NV.shape != teacher_logits_NV.shape:
            raise ValueError(
                f"student logits {list(student_logits_NV.shape)} and teacher logits {list(teacher_logits_NV.shape)} "
                "must have the same shape"
            )
        if type(self).with_gradient is not Loss.with_gradient and torch.is_grad_enabled():
            return _GradientInForward.apply(student_logits_NV, teacher_logits_NV, target_N, self)
        return self.from_log_probs(*log_probs(student_logits_NV, teacher_logits_NV.detach()), target_N)

    def from_log_probs(self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None) -> Tensor:
        """nats_N from log-probabilities that went through `drop_impossible`; differentiable in log_q_NV."""
        return self.divergence(log_q_NV, teacher_of(self, log_p_NV))

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        """nats_N of the divergence between teacher and student; 0 where they are equal."""
        raise NotImplementedError

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(nats_N, gradient_NV of their sum in the student's logits), both detached; the caller may write over them.

        This is the general way, by autograd; a loss with a closed form overrides it. The logits are those that log_q_NV
        is the log-softmax of (at a temperature T: the logits already divided by T).
        """
        leaf_NV = log_q_NV.detach().requires_grad_()
        with torch.enable_grad():
            nats_N = self.from_log_probs(leaf_NV, log_p_NV, target_N)
            (gradient_NV,) = torch.autograd.grad(nats_N.sum(), leaf_NV)
        return nats_N.detach(), through_log_softmax_(gradient_NV, log_q_NV.exp())

    def on(self, writer: str) -> "Loss":
        """The loss for text of this writer: data, teacher or student; itself, for most."""
        return self

    def weigh(self, text: "WrittenText") -> "TokenWeights | None":
        """What each scored token of a batch counts; None: all the same."""
        return None

    def observe(self, mean_nats: float, progress: float) -> dict[str, float]:
        """Values to log, after moving the loss's own schedule. Called once per optimiser step, in training only.

        mean_nats: this step's value of the loss in nats per token (all micro-batches, all ranks);
        progress: optimiser steps done / optimiser steps planned, in [0, 1].
        """
        return {}

    def preview(self, run: Callable[[], None]) -> None:
        """Called before every optimiser step; a loss that has to see the step's batches before its update calls `run`.

        run: passes all batches of the step through the loss, on all ranks, and calls `reduce`.
        """

    def reduce(self, add: Callable[[Sequence[float]], list[float]]) -> None:
        """Adds up over all ranks what the loss measured since the last step; called before `observe`.

        add: numbers of this rank -> their sums over all ranks, in float64.
        """

    def state_dict(self) -> dict[str, float | None]:
        """Plain numbers that a checkpoint must hold to go on exactly; empty for most losses."""
        return {}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Takes back what `state_dict` gave; refuses keys that this loss does not have."""
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"state of the {type(self).__name__.lower()} loss has keys {sorted(state)}, "
                f"expected {sorted(self.state_dict())}"
            )


class _GradientInForward(torch.autograd.Function):
    """nats_N, the gradient made in closed form beside it, a few rows at a time; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, student_logits_NV: Tensor, teacher_logits_NV: Tensor, target_N: Tensor | None, loss: Loss
    ) -> Tensor:
        dtype = torch.promote_types(student_logits_NV.dtype, teacher_logits_NV.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        gradient_NV = torch.empty_like(student_logits_NV, dtype=dtype)
        nats_N = gradient_NV.new_empty(len(gradient_NV))
        num_rows, vocabulary = student_logits_NV.shape
        for rows in row_blocks(num_rows, vocabulary, student_logits_NV.device.type):
            log_q_BV, log_p_BV = (log_softmax(x[rows], dtype) for x in (student_logits_NV, teacher_logits_NV))
            target_B = None if target_N is None else target_N[rows]
            nats_N[rows], gradient_NV[rows] = nats_and_gradient(loss, log_q_BV, log_p_BV, target_B)
        ctx.save_for_backward(gradient_NV)
        ctx.dtype = student_logits_NV.dtype
        return nats_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nats_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NV,) = ctx.saved_tensors
        return scaled(gradient_NV, grad_nats_N[:, None]).to(ctx.dtype), None, None, None


def scaled(saved: Tensor, factor: Tensor) -> Tensor:
    """Called in a backward pass: a saved gradient times factor, written over it unless the graph is kept for another.

    A copy would be as large as the head (154 MB for GPT-2) and cost about 6% of the objective (37,000 page faults).
    """
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return saved * factor if keeps_graph() else saved.mul_(factor)


def nats_and_gradient(
    loss: Loss,
    log_q_NV: Tensor,
    log_p_NV: Tensor | None,
    target_N: Tensor | None,
    *,
    with_gradient: WithGradient | None = None,
) -> tuple[Tensor, Tensor]:
    """`loss.with_gradient` for log-probabilities that did not go through `drop_impossible` yet.

    Args:
        with_gradient: stands for `Loss.with_gradient`: the same, compiled.
    """
    with_gradient = with_gradient or type(loss).with_gradient
    if log_p_NV is None:
        return with_gradient(loss, log_q_NV, None, target_N)
    kept_log_q_NV, kept_log_p_NV = drop_impossible(log_q_NV, log_p_NV)
    nats_N, gradient_NV = with_gradient(loss, kept_log_q_NV, kept_log_p_NV, target_N)
    if kept_log_q_NV is not log_q_NV:
        # An entry that is impossible for the teacher alone still has its part in the student's log-softmax. Its
        # gradient is -q sum(g), and sum(g) is found from the kept entries: all gradients of a row sum to 0.
        dropped_q_NV = log_q_NV.exp().masked_fill_(kept_log_q_NV != DROPPED_LOG_PROB, 0)
        dropped_q_NV /= dropped_q_NV.sum(-1, keepdim=True).clamp(min=torch.finfo(log_q_NV.dtype).tiny)
        gradient_NV.addcmul_(dropped_q_NV, gradient_NV.sum(-1, keepdim=True), value=-1)
    return nats_N, gradient_NV


def log_probs(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(log_q_NV, log_p_NV) in one dtype, through `drop_impossible`."""
    dtype = torch.promote_types(student_logits_NV.dtype, teacher_logits_NV.dtype)
    return drop_impossible(log_softmax(student_logits_NV, dtype), log_softmax(teacher_logits_NV, dtype))


def log_softmax(logits_NV: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Log-probabilities in float32 at least, whatever the models' dtype."""
    return torch.log_softmax(logits_NV, dim=-1, dtype=torch.promote_types(dtype or logits_NV.dtype, torch.float32))


def drop_impossible(log_q_NV: Tensor, log_p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The two, with every entry that is impossible for either set to DROPPED_LOG_PROB in both.

    Then p = q = 0 there, and every divergence gets 0 in value and gradient. The rest is not renormalised (the rule of
    MiniLLM and AKL, whose code masks the terms), so a value may miss mass of p or q. Below -1e4 nats counts as
    impossible: masks made with finfo.min are dropped too. Without such entries the cost is one minimum of each.
    """
    if log_q_NV.numel() == 0 or torch.minimum(log_q_NV.amin(), log_p_NV.amin()) > DROPPED_LOG_PROB:
        return log_q_NV, log_p_NV
    dropped_NV = (log_q_NV.detach() <= DROPPED_LOG_PROB) | (log_p_NV <= DROPPED_LOG_PROB)
    return log_q_NV.masked_fill(dropped_NV, DROPPED_LOG_PROB), log_p_NV.masked_fill(dropped_NV, DROPPED_LOG_PROB)


def teacher_of(loss: Loss, log_p_NV: Tensor | None) -> Tensor:
    """The teacher's log-probabilities, which a loss that compares with a teacher must have."""
    if log_p_NV is None:
        raise ValueError(f"{type(loss).__name__.lower()} compares with a teacher: log_p_NV is missing")
    return log_p_NV


def dot(left_NV: Tensor, right_NV: Tensor) -> Tensor:
    """Sum of the products, row by row: 0.18 ns an entry, einsum and bmm take 1.2 (one core, rows of 50257)."""
    return (left_NV * right_NV).sum(-1)


def through_log_softmax_(gradient_NV: Tensor, q_NV: Tensor) -> Tensor:
    """The gradient in the logits from that in their log-softmax, written over it: g - q sum(g)."""
    return gradient_NV.addcmul_(q_NV, gradient_NV.sum(-1, keepdim=True), value=-1)
