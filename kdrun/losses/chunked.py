"""The distillation objective from hidden states and heads, without ever holding the logits of all tokens.

Shapes: N scored tokens, C tokens of one chunk, V common vocabulary, D student width, E teacher width.
The gradient is made in the forward pass, chunk by chunk, so a chunk's logits are freed before the next chunk's exist;
the backward pass only multiplies by the incoming gradient.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdrun.losses.interface import Loss, WithGradient, drop_impossible, log_softmax, nats_and_gradient, scaled
from kdrun.losses.linear_head import LinearHead
from kdrun.losses.row_blocks import row_blocks
from kdrun.losses.sft import cross_entropy, cross_entropy_gradient
from kdrun.losses.written import TokenWeights
from kdrun.native import fast_float32_products

# Budget of the [C, V] tensors together. On a CPU chunks of 160 to 256 tokens took 2.35 s for 1024 tokens of GPT-2's
# vocabulary, of 128 took 2.46 and of 320 took 2.57; a GPU wants more work at once (not measured).
CHUNK_BYTES = {"cpu": 80 * 2**20}
CHUNK_BYTES_ELSEWHERE = 512 * 2**20
WORK_TENSORS = 2  # [C, V] float32: logits of both models; the loss works on a few rows at a time, see row_blocks.py
MIN_CHUNK_TOKENS = 16  # below it the matrix products read the whole head for next to nothing

Probe = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class ObjectiveSums:
    """Sums over the N tokens, in nats, never means; nan for what was not computed.

    total: differentiable scalar, (1 - kd_ratio) cross_entropy + kd_ratio T^2 divergence; for a loss that needs no
    teacher, the loss itself. cross_entropy: detached, at temperature 1. divergence: detached, at temperature T, without
    the factor T^2. Weights of tokens count in the total alone.
    """

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor


def chunked_linear_loss(  # noqa: PLR0917 - tensors in the order of a call
    loss: Loss,
    student_hidden_ND: Tensor,
    student_weight_VD: Tensor,
    teacher_hidden_NE: Tensor | None = None,
    teacher_weight_VE: Tensor | None = None,
    target_N: Tensor | None = None,
    chunk_tokens: int | None = None,
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """`chunked_objective(...).total`: the sum of nats, differentiable in the student's hidden states and head."""
    return chunked_objective(
        loss,
        student_hidden_ND,
        student_weight_VD,
        teacher_hidden_NE,
        teacher_weight_VE,
        target_N,
        chunk_tokens=chunk_tokens,
        kd_ratio=kd_ratio,
        temperature=temperature,
    ).total


def chunked_objective(  # noqa: PLR0917
    loss: Loss,
    student_hidden_ND: Tensor,
    student_weight_VD: Tensor,
    teacher_hidden_NE: Tensor | None = None,
    teacher_weight_VE: Tensor | None = None,
    target_N: Tensor | None = None,
    *,
    student_bias_V: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    weights: TokenWeights | None = None,
    chunk_tokens: int | None = None,
    with_gradient: WithGradient | None = None,
    probe: Probe | None = None,
    probe_tokens: int = 64,
) -> ObjectiveSums:
    """Sums of the objective over N scored tokens; `total` is differentiable in the student's hidden, weight and bias.

    Logits of a head: softcap tanh(x / softcap) with x = scale (hidden @ weight.T + bias), or x without a soft-cap.
    Matrix products run in the hidden states' dtype, everything else in float32 (float64 if hidden states are); autocast
    is off inside. No gradient reaches the teacher. target_N may be missing if kd_ratio is 1; then cross_entropy is nan.
    temperature divides both models' logits in the divergence only; temperature_squared multiplies the latter by T^2.
    weights: what each token's two terms are multiplied by, without gradient; cross_entropy_N takes the place of
    1 - kd_ratio. chunk_tokens: tokens projected at a time; None lets `default_chunk_tokens` choose.
    with_gradient: stands for `Loss.with_gradient`, see `nats_and_gradient`.
    probe: called once, with the logits of student and teacher at temperature 1 for the first tokens (at most
    probe_tokens, at most one chunk), as views that it must neither keep nor change; not called when N is 0.
    """
    teacher = None
    if loss.needs_teacher or probe is not None:
        if teacher_hidden_NE is None or teacher_weight_VE is None:
            raise ValueError("the loss or the probe needs a teacher: teacher_hidden_NE or teacher_weight_VE is missing")
        teacher = teacher_hidden_NE, LinearHead(teacher_weight_VE, teacher_bias_V, teacher_scale, teacher_softcap)
    num_tokens, vocabulary = len(student_hidden_ND), len(student_weight_VD)
    job = _Job(
        mix=_mix(loss, kd_ratio, temperature, temperature_squared=temperature_squared),
        weights=weights,
        student_head=LinearHead(student_weight_VD, student_bias_V, student_scale, student_softcap),
        teacher=teacher,
        target_N=target_N,
        chunk_tokens=chunk_tokens or default_chunk_tokens(num_tokens, vocabulary, student_hidden_ND.device.type),
        with_gradient=with_gradient,
        probe=probe,
        probe_tokens=probe_tokens,
        grad_enabled=torch.is_grad_enabled(),
    )
    _check(job, student_hidden_ND, student_weight_VD)
    with torch.autocast(student_hidden_ND.device.type, enabled=False):
        total, cross_entropy_sum, own_sum = _ChunkedObjective.apply(
            student_hidden_ND, student_weight_VD, student_bias_V, job
        )
    divergence = own_sum if loss.needs_teacher else torch.full_like(own_sum, torch.nan)
    return ObjectiveSums(total, cross_entropy_sum, divergence)


def default_chunk_tokens(num_tokens: int, vocabulary: int, device_type: str) -> int:
    """Tokens a chunk, so that the [C, V] tensors fit the budget: at least 16, at most num_tokens, a multiple of 16.

    A token costs WORK_TENSORS * 4 * V bytes: 0.4 MB for GPT-2's 50257 entries (at most 208 tokens a chunk on a CPU),
    1.2 MB for Qwen's 151936 (64 tokens). Chunks are even: 1024 tokens by 333 and a rest of 25 took 8% longer than four
    times 256.
    """
    fitting = CHUNK_BYTES.get(device_type, CHUNK_BYTES_ELSEWHERE) // (WORK_TENSORS * 4 * vocabulary)
    largest = max(MIN_CHUNK_TOKENS, fitting - fitting % MIN_CHUNK_TOKENS)
    even = math.ceil(num_tokens / max(1, math.ceil(num_tokens / largest)))
    return max(1, min(num_tokens, MIN_CHUNK_TOKENS * math.ceil(even / MIN_CHUNK_TOKENS)))


@dataclass(frozen=True)
class _Mix:
    """total = cross_entropy_weight CE + loss_weight loss, the loss at temperature."""

    loss: Loss
    loss_weight: float
    cross_entropy_weight: float
    temperature: float

    def log_probs(
        self, log_q_CV: Tensor, student_CV: Tensor, teacher_CV: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of both at the loss's temperature; at 1 the student's are log_q_CV, not computed again."""
        if not self.loss.needs_teacher or teacher_CV is None:
            return log_q_CV, None
        if self.temperature != 1:
            log_q_CV, teacher_CV = log_softmax(student_CV / self.temperature), teacher_CV / self.temperature
        return log_q_CV, log_softmax(teacher_CV, log_q_CV.dtype)


def _mix(loss: Loss, kd_ratio: float, temperature: float, *, temperature_squared: bool) -> _Mix:
    """(1 - kd_ratio) CE + kd_ratio T^2 divergence; the loss alone if it needs no teacher."""
    if not 0 <= kd_ratio <= 1:
        raise ValueError(f"kd_ratio={kd_ratio}: must be in [0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if not loss.needs_teacher:
        return _Mix(loss, 1.0, 0.0, 1.0)
    return _Mix(loss, kd_ratio * (temperature**2 if temperature_squared else 1), 1 - kd_ratio, temperature)


@dataclass(frozen=True)
class _Job:
    """One call's arguments apart from the three tensors that autograd watches."""

    mix: _Mix
    weights: TokenWeights | None
    student_head: LinearHead
    teacher: tuple[Tensor, LinearHead] | None  # hidden states and head
    target_N: Tensor | None
    chunk_tokens: int
    with_gradient: WithGradient | None
    probe: Probe | None
    probe_tokens: int
    grad_enabled: bool


def _check(job: _Job, student_hidden_ND: Tensor, student_weight_VD: Tensor) -> None:
    """Raises ValueError, with the shapes, for what cannot be one objective."""
    num_tokens, vocabulary = len(student_hidden_ND), len(student_weight_VD)
    if job.chunk_tokens < 1 or job.probe_tokens < 1:
        raise ValueError(f"chunk_tokens={job.chunk_tokens}, probe_tokens={job.probe_tokens}: must be 1 or more")
    own_weights = job.weights is not None and job.weights.cross_entropy_N is not None
    if job.target_N is None and (job.mix.cross_entropy_weight or own_weights):
        raise ValueError("kd_ratio below 1 mixes in the cross-entropy of the data: target_N is missing")
    for weight_N in (job.weights.divergence_N, job.weights.cross_entropy_N) if job.weights is not None else ():
        if weight_N is not None and weight_N.shape != (num_tokens,):
            raise ValueError(f"weights have shape {list(weight_N.shape)}, expected [{num_tokens}]")
    if job.target_N is not None and job.target_N.shape != (num_tokens,):
        raise ValueError(f"target_N has shape {list(job.target_N.shape)}, expected [{num_tokens}]")
    if job.teacher is None:
        return
    teacher_hidden_NE, teacher_head = job.teacher
    if len(teacher_hidden_NE) != num_tokens:
        raise ValueError(f"{num_tokens} tokens of the student, but {len(teacher_hidden_NE)} of the teacher")
    if len(teacher_head.weight_VD) != vocabulary:
        raise ValueError(
            f"the student's head has {vocabulary} entries, the teacher's {len(teacher_head.weight_VD)}: "
            "cut both to the common vocabulary"
        )


class _ChunkedObjective(torch.autograd.Function):
    """(total, cross-entropy, loss): three sums; only the total has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (hidden_ND, weight_VD, bias_V)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        # needs_input_grad does not know about torch.no_grad outside
        needed = [
            x if needs and job.grad_enabled else None for x, needs in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        accumulated = torch.promote_types(hidden_ND.dtype, torch.float32)
        gradients = [None if x is None else torch.zeros_like(x, dtype=accumulated) for x in needed]
        own_N, cross_entropy_N = _run_chunks(job, hidden_ND, gradients)
        ctx.save_for_backward(*gradients)
        own_sum, cross_entropy_sum = own_N.sum(), cross_entropy_N.sum()
        ctx.mark_non_differentiable(cross_entropy_sum, own_sum)
        return _total(job, own_N, cross_entropy_N), cross_entropy_sum, own_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # the product before the cast: a loss scale for fp16 must reach gradients that fp16 would flush to 0
        return *(None if g is None else scaled(g, grad_total).to(dtype) for g, dtype in pairs), None


def _total(job: _Job, own_N: Tensor, cross_entropy_N: Tensor) -> Tensor:
    """What is differentiated; a part of weight 0 is left out: it may be nan."""
    mix, weights = job.mix, job.weights
    total = own_N.new_zeros(())
    if mix.loss_weight:
        total = total + mix.loss_weight * (own_N if weights is None else own_N * weights.divergence_N).sum()
    if weights is not None and weights.cross_entropy_N is not None:
        return total + (cross_entropy_N * weights.cross_entropy_N).sum()
    return total + mix.cross_entropy_weight * cross_entropy_N.sum() if mix.cross_entropy_weight else total


def _run_chunks(job: _Job, hidden_ND: Tensor, gradients: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """(loss [N], cross-entropy [N]) in nats; adds the gradients of the total to those given."""
    grad_hidden_ND, grad_weight_VD, grad_bias_V = gradients
    # float16 would flush most of q - p (1/V and less) to 0, and the loss scale comes too late, in the backward pass
    back_dtype = torch.float32 if hidden_ND.dtype is torch.float16 else hidden_ND.dtype
    chunks = _Chunks(job, hidden_ND, back_dtype, grad_bias_V, with_gradient=any(x is not None for x in gradients))
    back_weight_VD = chunks.student_head.weight_VD.to(back_dtype) if grad_hidden_ND is not None else None
    for start in range(0, len(hidden_ND), job.chunk_tokens):
        rows = slice(start, min(start + job.chunk_tokens, len(hidden_ND)))
        # oneDNN keeps code and buffers for every shape that it meets and gives none of it back. So it meets few, and
        # the odd rest of a batch goes to MKL: else memory grew by several MB a step.
        products = nullcontext() if (rows.stop - rows.start) % MIN_CHUNK_TOKENS else fast_float32_products()
        with products:
            gradient_CV = chunks.run(rows)
            if gradient_CV is None:
                continue
            if grad_hidden_ND is not None and back_weight_VD is not None:
                grad_hidden_ND[rows] = gradient_CV @ back_weight_VD
            if grad_weight_VD is not None:
                hidden_CD = hidden_ND[rows].to(back_dtype)
                add_product_(grad_weight_VD, gradient_CV.T, hidden_CD, chunks.product_VD)
    return chunks.own_N, chunks.cross_entropy_N


def add_product_(sum_VD: Tensor, left_VC: Tensor, right_CD: Tensor, product_VD: Tensor | None) -> None:
    """sum += left @ right, the sum in float32 where the factors have 16 bits.

    On a GPU the product comes in float32, too. The CPU has no such kernel: each chunk's product is rounded to 16 bits
    (in `product`), once for all its tokens, and the chunks are added in float32.
    """
    if product_VD is None:
        sum_VD.addmm_(left_VC, right_CD)
    elif sum_VD.is_cuda:
        torch.addmm(sum_VD, left_VC, right_CD, out_dtype=sum_VD.dtype, out=sum_VD)
    else:
        torch.mm(left_VC, right_CD, out=product_VD)
        # in blocks, as a sum of two dtypes first makes a copy in the wider one
        for rows in row_blocks(sum_VD.shape[0], sum_VD.shape[1], sum_VD.device.type):
            sum_VD[rows] += product_VD[rows]


class _Chunks:
    """Runs chunk after chunk in the same buffers: logits of both models, the gradient then over the student's.

    Fresh [C, V] tensors would be pages that the system has to map and clear, as costly as several operations on them.
    """

    def __init__(
        self, job: _Job, hidden_ND: Tensor, back_dtype: torch.dtype, grad_bias_V: Tensor | None, *, with_gradient: bool
    ) -> None:
        self.job, self.hidden_ND, self.grad_bias_V, self.with_gradient = job, hidden_ND, grad_bias_V, with_gradient
        self.student_head = job.student_head.to(hidden_ND.dtype)
        shape = min(job.chunk_tokens, len(hidden_ND)), len(self.student_head.weight_VD)
        self.student_CV = hidden_ND.new_empty(shape)
        if job.teacher is not None:
            self.teacher_hidden_NE = job.teacher[0]
            self.teacher_head = job.teacher[1].to(self.teacher_hidden_NE.dtype)
            self.teacher_CV = self.teacher_hidden_NE.new_empty(shape)
        self.own_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        self.cross_entropy_N = torch.full_like(self.own_N, torch.nan)  # of no target
        self.gradient_CV = self.student_CV
        self.product_VD: Tensor | None = None  # of gradient and hidden states, where it has fewer bits than their sum
        if with_gradient and back_dtype not in (torch.float32, torch.float64):
            self.product_VD = hidden_ND.new_empty(shape[1], hidden_ND.shape[1], dtype=back_dtype)
        if with_gradient and back_dtype != hidden_ND.dtype:
            self.gradient_CV = hidden_ND.new_empty(shape, dtype=back_dtype)

    def run(self, rows: slice) -> Tensor | None:
        """gradient_CV in hidden @ weight.T + bias of the total, of the rows; their nats go into own_N and so on."""
        job, size = self.job, rows.stop - rows.start
        student_CV = self.student_head.product(self.hidden_ND[rows], self.student_CV[:size])
        teacher_CV = None
        if job.teacher is not None:
            teacher_CV = self.teacher_head.product(self.teacher_hidden_NE[rows], self.teacher_CV[:size])
            if job.probe is not None and rows.start == 0:
                first = slice(0, job.probe_tokens)  # copies, as logits may be finished in place
                job.probe(
                    self.student_head.finish_(student_CV[first].clone()),
                    self.teacher_head.finish_(teacher_CV[first].clone()),
                )
        for block in row_blocks(size, student_CV.shape[1], student_CV.device.type):
            teacher_BV = None if teacher_CV is None else self.teacher_head.finish_(teacher_CV[block])
            tokens = slice(rows.start + block.start, rows.start + block.stop)
            self._run_block(tokens, student_CV[block], teacher_BV, self.gradient_CV[block])
        return self.gradient_CV[:size] if self.with_gradient else None

    def _run_block(self, tokens: slice, product_BV: Tensor, teacher_BV: Tensor | None, gradient_BV: Tensor) -> None:
        """The nats of a few tokens, and their gradient into gradient_BV."""
        mix, weights = self.job.mix, self.job.weights
        target_B = None if self.job.target_N is None else self.job.target_N[tokens]
        student_BV = self.student_head.finish_(product_BV)
        log_q_BV = log_softmax(student_BV)
        log_q_T_BV, log_p_T_BV = mix.log_probs(log_q_BV, student_BV, teacher_BV)
        if target_B is not None:
            self.cross_entropy_N[tokens] = cross_entropy(log_q_BV, target_B)
        if not self.with_gradient:
            if log_p_T_BV is not None:
                log_q_T_BV, log_p_T_BV = drop_impossible(log_q_T_BV, log_p_T_BV)
            self.own_N[tokens] = mix.loss.from_log_probs(log_q_T_BV, log_p_T_BV, target_B)
            return
        self.own_N[tokens], own_gradient_BV = nats_and_gradient(
            mix.loss, log_q_T_BV, log_p_T_BV, target_B, with_gradient=self.job.with_gradient
        )
        factor = mix.loss_weight / mix.temperature  # d(logits / T) = d(logits) / T
        if factor != 1:
            own_gradient_BV *= factor
        if weights is not None:
            own_gradient_BV *= weights.divergence_N[tokens, None]
        if weights is not None and weights.cross_entropy_N is not None and target_B is not None:
            own_gradient_BV += cross_entropy_gradient(log_q_BV, target_B) * weights.cross_entropy_N[tokens, None]
        elif mix.cross_entropy_weight and target_B is not None:
            own_gradient_BV.add_(cross_entropy_gradient(log_q_BV, target_B), alpha=mix.cross_entropy_weight)
        own_gradient_BV = self.student_head.through_scale_and_softcap_(own_gradient_BV, student_BV)
        if self.grad_bias_V is not None:
            self.grad_bias_V += own_gradient_BV.sum(0)
        gradient_BV.copy_(own_gradient_BV)
