"""All canaries in the order of the doctor's list: from the texts over one forward pass to one step."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator

from kdrun.canaries import cached, gradient, objective, texts, written
from kdrun.canaries.finding import Finding
from kdrun.canaries.patient import Patient

# Name, canary, and what it needs beside the student: nothing, the teacher, or the teacher where the loss asks one.
CANARIES: tuple[tuple[str, Callable[[Patient], Finding], str], ...] = (
    ("rows", texts.rows_are_their_texts, ""),
    ("scored tokens", texts.scored_tokens, ""),
    ("positions", texts.positions, ""),
    ("end of text", texts.ends_once, ""),
    ("template", texts.response_is_encoded_alike, ""),
    ("round trip", texts.texts_come_back, ""),
    ("head", objective.head_is_the_models_own, ""),
    ("cross-entropy", objective.cross_entropy_is_the_models_own, ""),
    ("student = teacher", objective.student_as_teacher, ""),
    ("cache", cached.cached_student_as_teacher, ""),
    ("shift", objective.shift_raises_the_loss, ""),
    ("teacher", objective.teacher_is_its_model, "teacher"),
    ("chunks", objective.chunks_agree, "loss"),
    ("divergences", objective.every_loss_is_a_divergence, ""),
    ("learned tokens", gradient.scored_tokens_are_learned_from, ""),
    ("gradient", gradient.step_is_the_textbooks, ""),
    ("micro-batches", gradient.micro_batches_agree, "loss"),
    ("processes", gradient.processes_agree, "loss"),
    ("own text", written.own_text_is_scored_whole, ""),
    ("taid", gradient.taid_moves_once_a_step, "teacher"),
)


def look_over(patient: Patient) -> Iterator[Finding]:
    """What every canary finds; those that need a teacher which is not there are named."""
    for name, canary, needs in CANARIES:
        asks_teacher = needs == "teacher" or (needs == "loss" and patient.loss.needs_teacher)
        if asks_teacher and patient.teacher is None:
            yield Finding(name, "skipped", "it needs the teacher, and there is none")
        else:
            yield examined(name, lambda canary=canary: canary(patient))  # type: ignore[misc]


def examined(name: str, check: Callable[[], Finding]) -> Finding:
    """What a check finds; one that breaks is a finding, too, and the others are made all the same."""
    try:
        return check()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}:{frame.lineno})"
        return Finding(name, "FAIL", said, "mend that first; the other checks were made all the same")
