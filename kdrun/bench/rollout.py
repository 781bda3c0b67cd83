"""kdrun bench rollout: an on-policy step against its parts, writing and an off-policy step, and against TRL's.

Models of random weights hardly ever stop, so every text has max_new_tokens; reverse KL. Each contestant runs in a
process of its own and does one step a turn, on the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kdrun.bench.contest import Contestant, Plan, Target, Work
from kdrun.bench.generate import left_padded
from kdrun.bench.lane import Lane, LaneWork
from kdrun.bench.pair import Pair, PairInputs
from kdrun.bench.step import StepCase, train_with_trl

ON_POLICY, APART = "kdrun, on-policy step", "kdrun, writing, then an off-policy step"
WRITING, OFF_POLICY, TRL = "kdrun, writing alone", "kdrun, off-policy step alone", "TRL GKDTrainer, on-policy"


@dataclass(frozen=True)
class RolloutCase(StepCase):
    """One pair and its prompts, each with so many tokens to write."""

    max_new_tokens: int

    @property
    def label(self) -> str:
        return f"{self.pair.label}, {self.max_new_tokens} of them written"

    @property
    def sizes(self) -> dict[str, float]:
        return {**self.pair.sizes, "max_new_tokens": self.max_new_tokens}

    def contestants(self) -> list[Contestant]:
        """The step, its parts together and alone, and TRL's."""
        ours = {ON_POLICY: (True, True), APART: (True, True), WRITING: (True, False), OFF_POLICY: (False, True)}
        return [
            *(
                Contestant(name, partial(start, self, partial(run_ours, fused=name == ON_POLICY, parts=parts)), "ours")
                for name, parts in ours.items()
            ),
            Contestant(TRL, partial(start, self, run_trl), "peer", "trl"),
        ]


def plan(*, pair: Pair, max_new_tokens: int, repetitions: int, threads: int | None) -> Plan:
    """One case. The target: an on-policy step takes at most 1.3 x its parts, measured apart."""
    case = RolloutCase(pair, repetitions + 1, threads, max_new_tokens)
    targets = [Target(ON_POLICY, APART, 1.3)]
    return Plan([case], ON_POLICY, targets, memory_means="the whole process")


def start(case: RolloutCase, run: Any, inputs: PairInputs) -> Work:
    """The work of a contestant, with the texts of each step."""
    units = {"texts": [case.pair.batch_size] * (case.num_steps + 1)}
    given = (inputs, case.num_steps + 1, case.max_new_tokens)
    return LaneWork(run, given, device=case.device, threads=case.threads, units=units)


def run_ours(given: tuple[PairInputs, int, int], lane: Lane, *, fused: bool, parts: tuple[bool, bool]) -> None:
    """kdrun's loop with a live teacher.

    Args:
        fused: the loop itself writes; else what is written is thrown away, and the loop learns rows of the same
            lengths, written before. parts: whether there is writing, and whether there is learning.
    """
    from kdrun.generation.generate import Sampling
    from kdrun.losses import make_loss
    from kdrun.rollouts.rollout import Rollout, StudentText
    from kdrun.rollouts.writer import StudentWriter
    from kdrun.teachers.live import LiveTeacher

    inputs, num_steps, max_new_tokens = given
    pair, rows = inputs.pair, inputs.rows
    teacher = LiveTeacher(inputs.teacher().to(pair.device), rows=None)
    loop = inputs.loop(make_loss("rkl"), teacher, num_steps=num_steps)
    writer = StudentWriter(
        loop.placement.plain.student, Sampling(max_new_tokens), eos_id=inputs.tokenizer.eos_token_id,
        pad_id=inputs.tokenizer.pad_token_id, batch_size=pair.batch_size, max_tokens=pair.max_tokens, seed=pair.seed,
        autocast=loop.placement.accelerator.autocast,
    )  # fmt: skip
    writes, learns = parts
    if fused:
        loop.rollout = StudentText(rows, writer, share=lambda progress: 1.0, num_steps=num_steps, seed=pair.seed)
    elif learns:
        loop.rollout = Rollout(writer.write(rows, np.arange(len(rows)), 0), writer="student")
    for step in range(num_steps):
        if writes and not fused:
            writer.write(rows, loop.order.rows(step), step)
        if learns:
            loop.step(step)
        lane.pause()


def run_trl(given: tuple[PairInputs, int, int], lane: Lane) -> None:
    """trl's GKDTrainer on its own text (lmbda=1), with reverse KL (beta=1), without gradient checkpointing."""
    inputs, num_steps, max_new_tokens = given
    train_with_trl(
        inputs, lane, num_steps=num_steps, collate=partial(_prompts_for_trl, inputs), lmbda=1.0, beta=1.0,
        max_new_tokens=max_new_tokens, temperature=1.0,
    )  # fmt: skip


def _prompts_for_trl(inputs: PairInputs, features: Sequence[dict[str, int]]) -> dict[str, Any]:
    """Prompts as trl's own collator gives them, left-padded, with rows that it replaces by what it writes."""
    prompts = [inputs.rows.prompt(feature["row"]).tolist() for feature in features]
    ids_BP, mask_BP = left_padded(prompts, inputs.tokenizer.pad_token_id)
    rows = {"input_ids": ids_BP, "labels": ids_BP, "attention_mask": mask_BP}
    return {**rows, "prompts": ids_BP, "prompt_attention_mask": mask_BP}
