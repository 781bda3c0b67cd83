"""What one forward pass of training computes: student body, both heads and the loss, in one module.

In one module, so that a distributed wrapper sees every parameter used in its own forward. Shapes: N
scored tokens, D student width, E teacher width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdrun.data.batch import Batch
from kdrun.losses import Loss, WrittenText, chunked_objective
from kdrun.losses.buckets import BucketedMix
from kdrun.losses.chunked import default_chunk_tokens
from kdrun.losses.linear_head import LinearHead
from kdrun.losses.sft import Sft
from kdrun.losses.written import TokenWeights, target_log_probs
from kdrun.models.heads import Head, head_of, hidden_states, scored_hidden_states
from kdrun.teachers.live import Teacher
from kdrun.teachers.topk import TopkTeacher
from kdrun.training.compile import Compiled

Probe = Callable[[Tensor, Tensor], None]
T = TypeVar("T")


class StudentObjective(nn.Module):
    """The student and the loss. `forward` returns sums over the batch's scored tokens, in nats."""

    def __init__(
        self,
        student: Any,
        loss: Loss,
        *,
        rows: int | None = None,
        kd_ratio: float = 1.0,
        temperature: float = 1.0,
        temperature_squared: bool = True,
        chunk_tokens: int | None = None,
        teacher_share: float = 0.0,
        compiled: Compiled | None = None,
    ) -> None:
        """
        Args:
            rows: vocabulary rows shared with the teacher; None keeps the student's own.
            teacher_share: of the mixture that text of the writer "student" was drawn from.
            compiled: runs the student's body and the loss; None runs them as they are.
        """
        super().__init__()
        self.student = student
        self.loss = loss
        self.rows = rows if rows is not None else head_of(student).weight_VD.shape[0]
        self.kd_ratio, self.temperature, self.temperature_squared = kd_ratio, temperature, temperature_squared
        self.chunk_tokens, self.teacher_share = chunk_tokens, teacher_share
        self.compiled = compiled
        self.teacher_s: float | None = None  # set to 0: the seconds of the teacher are added up here, at a price

    def forward(
        self, batch: Batch, teacher: Teacher | TopkTeacher | None = None, probe: Probe | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(total, cross-entropy, divergence): sums over scored tokens; only the total carries a gradient.

        A corpus is learned by its cross-entropy. kd_ratio mixes in the cross-entropy of text that the data or the
        teacher gave: on the student's own it would only sharpen what it says already, so the divergence stands alone.
        """
        device, device_type = batch.target_N.device, batch.target_N.device.type
        loss = Sft() if batch.writer == "corpus" else self.loss.on(batch.writer)
        kd_ratio = 1.0 if batch.writer == "student" else self.kd_ratio
        if not loss.needs_teacher:
            teacher = None
        live = teacher if not isinstance(teacher, TopkTeacher) else None
        with self._teacher_timed(device):
            bucketed = self._bucketed(batch, teacher) if isinstance(teacher, TopkTeacher) else None
            teacher_hidden_NE = live.hidden(batch) if live is not None else None
        pass_of = self.compiled.body if self.compiled else hidden_states
        student_hidden_ND = scored_hidden_states(self.student, batch.groups, pass_of=pass_of)
        if torch.is_autocast_enabled(device_type):  # the heads' products in the body's precision
            dtype = torch.get_autocast_dtype(device_type)
            student_hidden_ND = student_hidden_ND.to(dtype)
            teacher_hidden_NE = teacher_hidden_NE.to(dtype) if teacher_hidden_NE is not None else None
        head = head_of(self.student).cut(self.rows)
        theirs = live.head if live is not None else None
        sums = chunked_objective(
            bucketed or loss,
            student_hidden_ND,
            head.weight_VD,
            teacher_hidden_NE,
            theirs.weight_VD if theirs else None,
            batch.target_N,
            student_bias_V=head.bias_V,
            teacher_bias_V=theirs.bias_V if theirs else None,
            student_scale=head.scale,
            teacher_scale=theirs.scale if theirs else 1.0,
            student_softcap=head.softcap,
            teacher_softcap=theirs.softcap if theirs else None,
            weights=self._weights(loss, batch, (student_hidden_ND, head), (teacher_hidden_NE, theirs)),
            chunk_tokens=self.chunk_tokens,
            with_gradient=self.compiled.with_gradient if self.compiled else None,
            probe=probe if theirs else None,
            kd_ratio=kd_ratio,
            temperature=self.temperature,
            temperature_squared=self.temperature_squared,
        )
        return sums.total, sums.cross_entropy, sums.divergence if bucketed is None else bucketed.divergence_sum

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns. Where the student is sharded this is a forward, too: embeddings and head are whole."""
        return work()

    def _weights(self, loss: Loss, batch: Batch, *models: tuple[Tensor | None, Head | None]) -> TokenWeights | None:
        """What the loss lets each token count; student and teacher as (hidden states, head)."""

        def log_probs() -> tuple[Tensor, Tensor]:
            found = []
            for hidden_ND, head in models:
                if hidden_ND is None or head is None:
                    raise ValueError("weights of tokens need a teacher that is a model, live or with its head cached")
                linear = LinearHead(head.weight_VD, head.bias_V, head.scale, head.softcap)
                size = (len(hidden_ND), len(head.weight_VD), hidden_ND.device.type)
                chunk = self.chunk_tokens or default_chunk_tokens(*size)
                found.append(target_log_probs(hidden_ND, linear, batch.target_N, chunk_tokens=chunk))
            return found[0], found[1]

        weights = loss.weigh(WrittenText(batch.lengths, log_probs, self.teacher_share))
        return None if weights is None else weights.to(batch.target_N.device)

    @contextmanager
    def _teacher_timed(self, device: torch.device) -> Iterator[None]:
        if self.teacher_s is None:
            yield
            return
        start = time_on(device)
        yield
        self.teacher_s += time_on(device) - start

    def _bucketed(self, batch: Batch, teacher: TopkTeacher) -> BucketedMix:
        """The objective on a lossy cache's buckets."""
        if self.temperature != 1:
            raise ValueError(f"temperature={self.temperature}: buckets hold log-probabilities at temperature 1 only")
        return BucketedMix(self.loss, *teacher.buckets(batch), kd_ratio=self.kd_ratio)


def time_on(device: torch.device) -> float:
    """A clock in seconds, read when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
