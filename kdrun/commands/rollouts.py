"""Whose text a training learns: the rollout of a config, and the teacher's text that it reads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import Models, RunSets
from kdrun.commands.teacher_texts import drawn_by, teacher_texts
from kdrun.commands.teachers import RunTeacher
from kdrun.config import TrainConfig
from kdrun.config.rollouts import AdaptiveText, Drawn, MixedText, OwnText, TeacherText
from kdrun.data.encoding import EncodedSet
from kdrun.teachers.live import LiveTeacher

log = logging.getLogger(__name__)


def build_rollout(
    config: TrainConfig, models: Models, rows: EncodedSet, teacher: RunTeacher, *, num_steps: int, accelerator: Any
) -> Any:
    """The rollout of a training on `rows`: the data's, or the teacher's text where that is asked for."""
    from kdrun.rollouts.adaptive import Adaptive
    from kdrun.rollouts.rollout import Contrastive, Rollout, StudentText, WithCorpus, share_schedule

    section, data = config.rollout, config.data
    rollout: Any
    if not isinstance(section, Drawn):
        rollout = Rollout(rows)
    elif section.name == "teacher":
        rollout = Rollout(rows, writer="teacher")
    else:
        writer = _writer(config, section, models, teacher, accelerator)
        shared = {"num_steps": num_steps, "seed": config.seed}
        if isinstance(section, AdaptiveText):
            rollout = Adaptive(
                rows, writer, threshold=section.threshold, threshold_step=section.threshold_step,
                margin=section.margin, buffer_size=section.buffer_size, **shared,
            )  # fmt: skip
        elif isinstance(section, MixedText):
            share = share_schedule(section.share, section.share_end, schedule=section.schedule)
            rollout = StudentText(rows, writer, share=share, **shared)
        elif isinstance(section, OwnText):
            rollout = StudentText(rows, writer, share=lambda progress: 1.0, **shared)
        else:
            rollout = Contrastive(rows, writer, **shared)
    if data.corpus is None:
        return rollout
    from kdrun.data.corpus import load_corpus
    from kdrun.training.batches import RowOrder

    corpus = load_corpus(data.corpus, models.tokenizer, max_tokens=data.max_tokens)
    order = RowOrder(len(corpus), batch_size=data.corpus_rows or config.train.batch_size, seed=config.seed)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return WithCorpus(rollout, corpus, rows=lambda step: order.rows(step)[rank::ranks], weight=data.corpus_weight)


def _writer(config: TrainConfig, section: Drawn, models: Models, teacher: RunTeacher, accelerator: Any) -> Any:
    from kdrun.generation.reading import Mixture
    from kdrun.rollouts.writer import StudentWriter

    share = section.teacher_share if isinstance(section, OwnText) else 0.0
    mixed_with = None
    if isinstance(live := teacher.sets["train"], LiveTeacher):  # even of share 0: no token beyond the shared rows
        mixed_with = Mixture(live.model, share, len(live.head.weight_VD))
    return StudentWriter(
        models.student,
        drawn_by(section, config.data.max_tokens),
        eos_id=models.tokenizer.eos_token_id, pad_id=models.tokenizer.pad_token_id, batch_size=section.batch_size,
        max_tokens=config.data.max_tokens, seed=config.seed, mixed_with=mixed_with, autocast=accelerator.autocast,
    )  # fmt: skip


def with_teacher_text(
    config: TrainConfig,
    models: Models,
    sets: RunSets,
    *,
    device: str,
    reader: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> tuple[RunSets, dict[str, Any]]:
    """The sets with the teacher's text in the place of the data's, where the rollout asks for it; and what run.json
    says of that text, nothing where it does not. `reader`, `say`: see `teacher_texts`."""
    if not isinstance(config.rollout, TeacherText):
        return sets, {}
    texts, facts = teacher_texts(config, models, sets.train, device=device, reader=reader, say=say)
    asked = {**sets.asked, "train": texts} if "train" in sets.asked else sets.asked
    return replace(sets, train=texts, asked=asked), facts
