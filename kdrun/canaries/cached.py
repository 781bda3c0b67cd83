"""The student's own states through a cache on the disk: the path of teacher=cached, whether or not it is chosen."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdrun.canaries.finding import Finding, within
from kdrun.canaries.objective import ZERO, divergence_of
from kdrun.canaries.patient import Patient
from kdrun.losses import make_loss
from kdrun.teachers.building import build, hidden_record
from kdrun.teachers.cached import CachedTeacher, dtype_name, open_cache, read_head, save_head
from kdrun.teachers.manifest import TeacherIdentity, identity_fields

NOBODY = "0" * 64  # a hash of this cache's identity: no other cache is near it


def cached_student_as_teacher(patient: Patient) -> Finding:
    """The divergence of the student from itself when its states were written down and read again."""
    itself = patient.itself()
    weight_VE = itself.head.weight_VD
    rows = patient.encoded.subset(patient.numbers)
    teacher = TeacherIdentity(
        NOBODY, None, NOBODY, dtype=dtype_name(weight_VE.dtype), topk=None, vocabulary=None, template="", overlong="",
        max_prompt_tokens=0, max_tokens=0, torch="", transformers="",
    )  # fmt: skip
    identity = identity_fields(teacher, rows)
    with tempfile.TemporaryDirectory(prefix="kdrun-doctor-") as place:
        folder = Path(place) / "rows"
        build(
            folder, rows, hidden_record(itself.hidden, width=weight_VE.shape[1], dtype=weight_VE.dtype),
            identity=identity, notes={"teacher": "student", "data": "rows", "split": "rows"},
            head=save_head(itself.head, folder.parent), pad_id=patient.tokenizer.pad_token_id, device=patient.device,
            progress=lambda *_, **__: nullcontext(lambda _: None),
        )  # fmt: skip
        shards = open_cache(folder, identity, key="teacher=cached")
        cached = CachedTeacher(shards, read_head(folder.parent, device=patient.device))
        few = replace(patient, encoded=rows, numbers=np.arange(len(rows)))
        value = abs(divergence_of(few, make_loss("fkl"), cached))
    return within(
        "cache", value, ZERO + patient.rounding, measured="forward KL of the student from its own cached states, nats",
        remedy="teacher=cached gives a token another's state: use teacher=live, and mend kdrun/teachers/store.py",
    )  # fmt: skip
