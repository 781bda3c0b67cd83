"""kdrun bench step: the whole optimiser step, kdrun's loop against TRL's GKDTrainer, on the same batches.

Both models have random weights made from one seed; off-policy forward KL (GKD's beta = 0) on the data's responses. Each
trainer runs in a process of its own and does one step a turn; its memory is that of the whole process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kdrun.bench.contest import Contestant, Plan, Target, Work
from kdrun.bench.lane import Lane, LaneWork
from kdrun.bench.pair import LEARNING_RATE, Pair, PairInputs

OURS, TRL, TRL_DEFAULT = "kdrun", "TRL GKDTrainer", "TRL GKDTrainer, checkpointing (its default)"


@dataclass(frozen=True)
class PairCase:
    """One pair on one set of rows: what `step`, `rollout` and `cache` have in common."""

    pair: Pair

    @property
    def label(self) -> str:
        return self.pair.label

    @property
    def sizes(self) -> dict[str, float]:
        return self.pair.sizes

    @property
    def device(self) -> str:
        return self.pair.device

    def build(self) -> Any:
        """Rows and tokenizer."""
        return self.pair.build()


@dataclass(frozen=True)
class StepCase(PairCase):
    """num_steps: the timed ones and the warm-up."""

    num_steps: int
    threads: int | None

    def contestants(self) -> list[Contestant]:
        """kdrun and TRL, the latter also as it comes, with gradient checkpointing."""
        return [
            Contestant(OURS, partial(start, run_ours, self), "ours"),
            Contestant(TRL, partial(start, run_trl, self), "peer", "trl"),
            Contestant(TRL_DEFAULT, partial(start, partial(run_trl, checkpointing=True), self), "peer", "trl"),
        ]


def plan(*, pair: Pair, repetitions: int, threads: int | None) -> Plan:
    """One case, with a step more than the timed ones for the warm-up."""
    targets = [Target(OURS, against, 1 / 2.5) for against in (TRL, TRL_DEFAULT)]
    targets += [Target(OURS, against, 0.35, "memory") for against in (TRL, TRL_DEFAULT)]
    case = StepCase(pair, repetitions + 1, threads)
    return Plan([case], OURS, targets, memory_means="the whole process")


def start(run: Any, case: StepCase, inputs: PairInputs) -> Work:
    """The work of a trainer, with the tokens of each step, so that all are counted in the same ones."""
    order, rows = inputs.order(), inputs.rows
    steps = [order.rows(step) for step in range(case.num_steps)]
    total = [int(rows.lengths[chosen].sum()) for chosen in steps]
    scored = [tokens - int(rows.prompt_lengths[chosen].sum()) for tokens, chosen in zip(total, steps, strict=True)]
    units = {"scored_tokens": scored, "tokens": total}
    # a step more than is asked for, so that the loop is stopped by the bench and never by its end
    return LaneWork(run, (inputs, case.num_steps + 1), device=case.device, threads=case.threads, units=units)


def run_ours(given: tuple[PairInputs, int], lane: Lane) -> None:
    """kdrun's loop with a live teacher, loss fkl; no log."""
    from kdrun.losses import make_loss
    from kdrun.teachers.live import LiveTeacher

    inputs, num_steps = given
    teacher = LiveTeacher(inputs.teacher().to(inputs.pair.device), rows=None)
    loop = inputs.loop(make_loss("fkl"), teacher, num_steps=num_steps)
    loop.run(start_step=0, on_step=lambda *_: lane.pause())


def run_trl(given: tuple[PairInputs, int], lane: Lane, *, checkpointing: bool = False) -> None:
    """trl's GKDTrainer.train(), off-policy (lmbda=0, beta=0); gradient checkpointing is its default."""
    inputs, num_steps = given
    train_with_trl(
        inputs, lane, num_steps=num_steps, collate=partial(_collate_for_trl, inputs), checkpointing=checkpointing,
        lmbda=0.0, beta=0.0,
    )  # fmt: skip


def train_with_trl(
    inputs: PairInputs, lane: Lane, *, num_steps: int, collate: Any, checkpointing: bool = False, **method: Any
) -> None:
    """trl's GKDTrainer.train(): its optimiser, clipping, scheduler; no log, no save.

    It gets the rows tokenised, in batches padded to the longest row: its own collator would apply a chat template and
    tokenise in every step. In float32, where its own default is bf16.

    Args:
        method: of GKDConfig: whose text, which divergence, how text is drawn.
    """
    import tempfile

    import datasets
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Pause(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            lane.pause()

    pair, order = inputs.pair, inputs.order()
    rows = np.concatenate([order.rows(step) for step in range(num_steps)])
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, per_device_train_batch_size=pair.batch_size, max_steps=num_steps,
            learning_rate=LEARNING_RATE, seq_kd=False, gradient_checkpointing=checkpointing,
            bf16=pair.precision == "bf16", use_cpu=pair.device == "cpu", max_length=pair.max_tokens,
            train_sampling_strategy="sequential", report_to="none", logging_strategy="no", save_strategy="no",
            disable_tqdm=True, seed=pair.seed, **method,
        )  # fmt: skip
        trainer = GKDTrainer(
            model=inputs.student(),
            teacher_model=inputs.teacher(),
            args=config,
            data_collator=collate,
            train_dataset=datasets.Dataset.from_dict({"row": rows.tolist()}),
            processing_class=inputs.tokenizer,
            callbacks=[Pause()],
        )
        trainer.train()


def _collate_for_trl(inputs: PairInputs, features: Sequence[dict[str, int]]) -> dict[str, Any]:
    """ids, labels and mask as trl's own collator names them, right-padded."""
    import torch

    from kdrun.data.scored import collate

    chosen = [feature["row"] for feature in features]
    ids_BT, labels_BT = collate([inputs.rows.row(row) for row in chosen], inputs.tokenizer.pad_token_id)
    lengths_B1 = torch.as_tensor(inputs.rows.lengths[chosen])[:, None]
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B1).long()
    return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
