"""Whether the teacher has something to teach: both models on held-out rows."""

from __future__ import annotations

import math

from kdrun.canaries.finding import Finding, Verdict
from kdrun.canaries.patient import Patient
from kdrun.data.encoding import EncodedSet
from kdrun.evaluation.agreement import agreement
from kdrun.teachers.live import LiveTeacher


def teacher_is_better(patient: Patient, held_out: EncodedSet, *, untrained: bool) -> Finding:
    """NLL of the teacher below the student's, in nats a token.

    Args:
        untrained: the student's weights are random, so that a teacher which is no better is no teacher.
    """
    assert isinstance(patient.teacher, LiveTeacher)
    means = agreement(
        patient.student, patient.teacher, held_out, pad_id=patient.tokenizer.pad_token_id, batch_size=8,
        rows=patient.shared,
    ).means  # fmt: skip
    gain = means["nll"] - means["teacher_nll"]
    said = (
        f"{len(held_out)} held-out rows: teacher {means['teacher_nll']:.4g} nats a token, student {means['nll']:.4g} "
        f"before training"
    )
    verdict: Verdict = "ok" if gain > 0 else "FAIL" if untrained or math.isnan(gain) else "warning"
    remedy = "the student starts no worse than its teacher: fine-tune the teacher on this data, or take a better one"
    return Finding("held-out", verdict, said, remedy, gain)
