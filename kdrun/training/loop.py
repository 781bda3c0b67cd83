"""The one loop: rows -> objective -> one division -> update.

A step's gradient is the sum of nats over all its scored tokens, on all micro-batches and ranks, divided once by their
number; it does not depend on how the step is split (pitfalls: normalised twice, per micro-batch, per rank). So a first
step for which the memory does not suffice is done again with smaller micro-batches, and is the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdrun.data.batch import Batch, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.losses import divergence_diagnostics
from kdrun.rollouts.rollout import Part, Rollout
from kdrun.runs.ranks import every_rank
from kdrun.teachers.finite import blame_teacher
from kdrun.teachers.live import Teacher
from kdrun.teachers.topk import TopkTeacher
from kdrun.training.batches import RowOrder, micro_batches
from kdrun.training.memory import MemoryMark, out_of_memory, smaller_micro_batch
from kdrun.training.objective import time_on
from kdrun.training.placement import Placement

Metrics = dict[str, float]
CORPUS = "corpus"


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not finite; the update of that step was not made."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how: durations in optimiser steps."""

    num_steps: int
    batch_size: int
    micro_batch_size: int | None
    seed: int
    clip_norm: float | None
    learning_rate: Callable[[int], float]
    log_every: int


@dataclass(frozen=True)
class StepSums:
    """What one optimiser step measured, on all ranks: nats summed over `num_tokens` scored tokens.

    teacher_share: of this rank's time, in [0, 1]: its forward, or the reading of its cache; None where not measured.
    corpus_nll: nats per token of the corpus, which counts in the total and in nothing else; None without one.
    """

    total: float
    cross_entropy: float
    divergence: float
    num_tokens: int
    probed: Metrics
    grad_norm: float = math.nan
    teacher_share: float | None = None
    corpus_nll: float | None = None


class _Count(NamedTuple):
    """Scored tokens and rows of one part of a step, on all ranks."""

    tokens: int
    texts: int


class Loop:
    """Trains an objective on encoded rows.

    `steps_done`: optimiser steps that are complete; `micro_batch_size`: the most rows of a forward pass, which only
    differs from the settings' after memory did not suffice for the first step.
    """

    def __init__(
        self,
        placement: Placement,
        rows: EncodedSet,
        settings: LoopSettings,
        *,
        teacher: Teacher | TopkTeacher | None,
        pad_id: int,
        rollout: Rollout | None = None,
    ) -> None:
        """
        Args:
            rows: what a step draws its rows from; rollout: what it makes of them (None: it learns them as they are).
        """
        self.rollout = rollout or Rollout(rows)
        self.placement, self.accelerator = placement, placement.accelerator
        self.loss, self.settings = placement.plain.loss, settings
        self.rows, self.teacher, self.pad_id = rows, teacher, pad_id
        self.order = RowOrder(len(rows), batch_size=settings.batch_size, seed=settings.seed)
        self.steps_done = 0
        self.micro_batch_size = settings.micro_batch_size
        self._fits = False  # whether memory sufficed for a step
        self._window: list[StepSums] = []  # steps since the last report
        self._window_start = time.monotonic()

    def run(
        self,
        *,
        start_step: int,
        on_step: Callable[[int, Metrics | None], None],
        between: Callable[[int], None] = lambda step: None,
        held: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Optimiser steps start_step .. num_steps - 1; `step` in reports counts the steps done.

        Args:
            on_step: called with (step, metrics or None) after every optimiser step; between: called after that.
            held: entered for every step with its `on_step`, not for `between`: keeps signals from half a step.
        """
        self.steps_done = start_step
        for step in range(start_step, self.settings.num_steps):
            if not self._window:
                self._window_start = time.monotonic()
            with held or nullcontext():
                metrics = self._reported_step(step)
                self.steps_done = step + 1
                on_step(step + 1, metrics)
            between(step + 1)

    def _reported_step(self, step: int) -> Metrics | None:
        """One optimiser step and the loss's own; the metrics of the window that ends with it, if one does."""
        settings, window = self.settings, self._window
        lr = settings.learning_rate(step)
        for group in self.placement.optimizer.param_groups:
            group["lr"] = lr
        logged = (step + 1) % settings.log_every == 0 or step + 1 == settings.num_steps
        # Timed apart from the probed step, whose diagnostics take time, too; not each, for a GPU is made to wait.
        sums = self.step(step, probe=logged, timed=not window)
        window.append(sums)
        state = self.loss.observe(_observed(sums), (step + 1) / settings.num_steps)
        if not logged:
            return None
        self._window = []
        seconds = time.monotonic() - self._window_start
        tokens = sum(s.num_tokens for s in window)
        rates = {"tokens_per_s": tokens / seconds, "step_s": seconds / len(window)}
        if window[0].teacher_share is not None:
            rates["teacher_share"] = window[0].teacher_share
        written = self.rollout.observe(seconds)
        return {**_means(window), **state, **sums.probed, "grad_norm": sums.grad_norm, "lr": lr, **rates, **written}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on exactly, as JSON: the window's steps and a micro-batch that fits."""
        return {
            "window": [asdict(sums) for sums in self._window],
            "window_s": time.monotonic() - self._window_start if self._window else 0.0,
            "micro_batch_size": {"asked": self.settings.micro_batch_size, "fits": self.micro_batch_size},
            "rollout": self.rollout.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave; a micro-batch that was cut is not when another is asked for now."""
        self._window = [StepSums(**sums) for sums in state["window"]]
        self._window_start = time.monotonic() - state["window_s"]
        if state["micro_batch_size"]["asked"] == self.settings.micro_batch_size:
            self.micro_batch_size = state["micro_batch_size"]["fits"]
        self.rollout.load_state_dict(state["rollout"])

    def step(self, step: int, *, probe: bool = False, timed: bool = False) -> StepSums:
        """One optimiser step: all its micro-batches, one division, one update.

        Args:
            probe: measure the diagnostics. timed: measure the teacher's share of the time.

        Raises:
            NonFiniteLoss: before the update, when the loss or the gradient's norm is not finite.
            UserError: instead, when that comes from the teacher.
        """
        device, objective = self.placement.device, self.placement.plain
        mine = self.order.rows(step)[self.accelerator.process_index :: self.accelerator.num_processes]
        parts = self.rollout.parts(step, mine)
        objective.teacher_s = 0.0 if timed and self.teacher is not None else None
        start = time_on(device) if objective.teacher_s is not None else 0.0
        sums = self._accumulate_what_fits(parts, probe)
        self.loss.reduce(self._sum)
        self._check(step, parts, sums.total / max(sums.num_tokens, 1), "loss")
        grad_norm = self.placement.update(
            self.settings.clip_norm, lambda norm: self._check(step, parts, norm, "gradient norm")
        )
        self._fits = True
        share = objective.teacher_s / (time_on(device) - start) if objective.teacher_s is not None else None
        return replace(sums, grad_norm=grad_norm, teacher_share=share)

    def _check(self, step: int, parts: Sequence[Part], found: float, name: str) -> None:
        """That the loss or the gradient's norm is finite."""
        if math.isfinite(found):
            return
        blame_teacher(self.teacher, [b for part, own in self._jobs(parts) if part.writer != CORPUS for b in own])
        raise NonFiniteLoss(
            f"step {step + 1}: {name} {found}; the update was not made. Lower train.lr, or look at the data and the "
            "teacher"
        )

    def _accumulate_what_fits(self, parts: Sequence[Part], probe: bool) -> StepSums:
        """`_accumulate`; until a first step has been made, memory that does not suffice halves the micro-batch."""
        # Ranks that halved each by itself would wait for one another for ever.
        while not self._fits and self.accelerator.num_processes == 1:
            mark = MemoryMark(self.loss, self.placement.device)
            try:
                return self._accumulate(parts, probe)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                said = error.with_traceback(None)  # its frames hold what the memory is full of
            self.placement.discard()
            mark.restore()
            num_rows = max(len(part.rows) for part in parts)
            self.micro_batch_size = smaller_micro_batch(min(self.micro_batch_size or num_rows, num_rows), said)
        return self._accumulate(parts, probe)

    def _accumulate(self, parts: Sequence[Part], probe: bool) -> StepSums:
        """The step's gradient, and its sums on all ranks; the gradient's norm is left open."""
        placement = self.placement
        jobs = self._jobs(parts)
        counts = [self._count(batches) for _, batches in jobs]
        num_tokens = sum(c.tokens for (part, _), c in zip(jobs, counts, strict=True) if part.writer != CORPUS)
        sums = dict.fromkeys(("total", "cross_entropy", "divergence", "corpus"), 0.0)
        probed: list[Metrics] = []
        placement.objective.train()
        self.loss.preview(lambda: self._preview([batch for _, batches in jobs for batch in batches]))
        last = jobs[-1][1][-1]
        for (part, batches), count in zip(jobs, counts, strict=True):
            is_corpus = part.writer == CORPUS
            share = part.weight / max(
                count.texts if self.loss.mean_over == "texts" and not is_corpus else count.tokens, 1
            )
            for batch in batches:
                with placement.micro_batch(last=batch is last):
                    total, cross_entropy, divergence = placement.objective(
                        batch, self.teacher, _probe(probed) if probe and not probed else None
                    )
                    placement.backward(total * share)
                sums["total"] += float(total.detach()) * (share * num_tokens)
                sums["corpus" if is_corpus else "cross_entropy"] += float(cross_entropy)
                sums["divergence"] += 0.0 if is_corpus else float(divergence)
        found = dict(zip(sums, self._sum(list(sums.values())), strict=True))
        corpus = [c.tokens for (part, _), c in zip(jobs, counts, strict=True) if part.writer == CORPUS]
        corpus_nats = found.pop("corpus")
        nll = corpus_nats / max(corpus[0], 1) if corpus else None
        return StepSums(**found, num_tokens=num_tokens, probed=probed[0] if probed else {}, corpus_nll=nll)

    def _count(self, batches: Sequence[Batch]) -> _Count:
        """Of a part, on all ranks."""
        mine = [sum(batch.num_scored for batch in batches), sum(len(batch.lengths) for batch in batches)]
        tokens, texts = self._sum(mine)
        return _Count(int(tokens), int(texts))

    def _preview(self, batches: Sequence[Batch]) -> None:
        """The forward passes of a step for the loss alone, with the very dropout that the step will draw."""
        device = self.placement.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.placement.micro_batch(last=False):
            for batch in batches:
                self.placement.objective(batch, self.teacher)
        self.loss.reduce(self._sum)

    def _jobs(self, parts: Sequence[Part]) -> list[tuple[Part, list[Batch]]]:
        """The micro-batches of each part. Where all ranks gather weights together, every rank has as many as any, in as
        many groups, if need be with nothing scored.
        """
        jobs = [(part, self._batches(part)) for part in parts]
        if not self.placement.in_step:
            return jobs
        ranks = every_rank([[len(batch.groups) for batch in batches] for _, batches in jobs])
        most = [[max(counts) for counts in zip_longest(*of_part, fillvalue=1)] for of_part in zip(*ranks, strict=True)]
        return [
            (
                part,
                [
                    (batches[i] if i < len(batches) else batches[0].unscored()).in_groups(n)
                    for i, n in enumerate(counts)
                ],
            )
            for (part, batches), counts in zip(jobs, most, strict=True)
        ]

    def _batches(self, part: Part) -> list[Batch]:
        """A part's micro-batches; a rank without a row takes one with nothing scored, to stay in step."""
        encoded, rows = (part.encoded, part.rows) if len(part.rows) else (self.rows, np.arange(1))
        # Rows of like length share a micro-batch: less padding, and the step's gradient is the same.
        rows = rows[np.argsort(encoded.lengths[rows], kind="stable")]
        batches = [
            make_batch(encoded, piece, pad_id=self.pad_id, device=self.placement.device, writer=part.writer)
            for piece in micro_batches(rows, self.micro_batch_size)
        ]
        return batches if len(part.rows) else [batch.unscored() for batch in batches]

    def _sum(self, values: Sequence[float]) -> list[float]:
        """Over all ranks."""
        if self.accelerator.num_processes == 1:
            return list(values)
        total = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.placement.device), "sum")
        return [float(value) for value in total]


def _probe(into: list[Metrics]) -> Callable[[Tensor, Tensor], None]:
    """Diagnostics of the first scored tokens, from logits that the objective has at hand anyway."""

    def probe(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> None:
        values = divergence_diagnostics(student_logits_NV, teacher_logits_NV)
        into.append({name: float(value.mean()) for name, value in values.items()})

    return probe


def _observed(sums: StepSums) -> float:
    """Mean nats of the loss itself: the divergence, or the cross-entropy when there is none."""
    value = sums.divergence if math.isfinite(sums.divergence) else sums.cross_entropy
    return value / max(sums.num_tokens, 1)


def _means(window: Sequence[StepSums]) -> Metrics:
    """Nats per scored token over the steps since the last report."""
    tokens = max(sum(s.num_tokens for s in window), 1)
    means = {name: sum(getattr(s, name) for s in window) / tokens for name in ("total", "cross_entropy", "divergence")}
    means["loss"] = means.pop("total")
    corpus = [s.corpus_nll for s in window if s.corpus_nll is not None]
    means |= {"corpus_nll": sum(corpus) / len(corpus)} if corpus else {}
    return {name: value for name, value in means.items() if math.isfinite(value)}
