"""What one forward pass of training says, against the models' own logits and textbook formulas.

Shapes: N scored tokens, V shared vocabulary, E teacher width.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from kdrun.canaries.finding import Finding, none_of, within
from kdrun.canaries.patient import Patient, own_logits, own_targets
from kdrun.data.batch import Batch
from kdrun.losses import LOSSES, Loss, make_loss
from kdrun.losses.buckets import teacher_buckets
from kdrun.models.heads import check_head
from kdrun.teachers.live import LiveTeacher, Teacher
from kdrun.teachers.topk import TopkTeacher
from kdrun.training.objective import StudentObjective

ZERO = 1e-6
# Of losses that are 0 at p = q only in exact arithmetic: in float32 ab is off by 5e-6 with 151,936 entries.
ROUNDED = 1e-4
# Of a sum of float32 terms, relative; a fault of alignment or of counting is 1e-2 and more.
EQUAL = 1e-4
CHUNKS = (16, 7)
MISALIGNED = "teacher and student do not meet at the same token: look at scored positions, and at the loss's value"


class _Buckets(TopkTeacher):
    """What a lossy cache of another teacher would hold."""

    def __init__(self, teacher: LiveTeacher, topk: int) -> None:
        self.teacher, self.topk, self.rows = teacher, topk, len(teacher.head.weight_VD)

    def buckets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden_NE = self.teacher.hidden(batch).clone()  # no inference tensor, as what comes from the disk is none
            return teacher_buckets(self.teacher.head(hidden_NE).float(), self.topk)


class _Shifted:
    """A teacher whose states belong to the token before."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.head = teacher, teacher.head

    def hidden(self, batch: Batch) -> Tensor:
        return torch.roll(self.teacher.hidden(batch), 1, dims=0)


def sums_of(
    patient: Patient, loss: Loss, teacher: Teacher | TopkTeacher | None, *, chunk_tokens: int | None = None,
    **mix: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(total, cross-entropy, divergence): sums of nats by the training's own objective; kd_ratio 1 unless given."""
    mix = {**patient.mix, "kd_ratio": 1.0, **mix}
    # a copy: the loss must begin the training as it was made
    made = StudentObjective(patient.student, copy.deepcopy(loss), rows=patient.shared, chunk_tokens=chunk_tokens, **mix)
    total, own_cross_entropy, divergence = made.eval()(patient.batch(), teacher)
    return total, own_cross_entropy, divergence


def divergence_of(patient: Patient, loss: Loss, teacher: Teacher | TopkTeacher, **mix: Any) -> float:
    """The mean divergence in nats a token, by the training's own objective."""
    return float(sums_of(patient, loss, teacher, **mix)[2]) / patient.batch().num_scored


def head_is_the_models_own(patient: Patient) -> Finding:
    """head(hidden) against the model's logits, of the student and of a teacher that is a model."""
    ids_1L = torch.tensor([max((row.ids for row in patient.hand), key=len)], device=patient.device)
    models = {"student": patient.student}
    if isinstance(patient.teacher, LiveTeacher):
        models["teacher"] = patient.teacher.model
    figure = max(check_head(model, ids_1L, name=name) for name, model in models.items())
    return Finding(
        "head", "ok", f"head(hidden) = logits of {' and '.join(models)}, to {figure:.2g} of their spread", "", figure
    )


def cross_entropy_is_the_models_own(patient: Patient) -> Finding:
    """The objective's cross-entropy against that of the model's own logits, row by row without padding."""
    with torch.no_grad():
        rows = patient.in_order(patient.batch())
        logits_NV = own_logits(patient.student, rows, shared=patient.shared)
        expected = float(cross_entropy(logits_NV, own_targets(rows, patient.device), reduction="sum"))
    found = float(sums_of(patient, make_loss("fkl"), patient.itself())[1])
    return within(
        "cross-entropy", abs(found - expected) / abs(expected), EQUAL + patient.rounding,
        measured=f"{found / patient.batch().num_scored:.4f} nats a token, from the model's own logits by hand "
        f"{expected / max(len(logits_NV), 1):.4f}; relative difference of the sums",
        remedy="positions, labels or their number are wrong: a token is predicted by the state before it",
    )  # fmt: skip


def student_as_teacher(patient: Patient) -> Finding:
    """The divergence of the student from itself, for forward KL and the chosen loss, on the path in use."""
    itself = patient.itself()
    cases: list[tuple[Loss, Teacher | TopkTeacher, float]] = [(make_loss("fkl"), itself, ZERO)]
    if isinstance(patient.teacher, TopkTeacher):
        cases.append((patient.loss, _Buckets(itself, patient.teacher.topk), ROUNDED))
    elif patient.loss.needs_teacher:
        cases.append((patient.loss, itself, ROUNDED))
    values = [abs(divergence_of(patient, loss, teacher)) for loss, teacher, _ in cases]
    good = all(v <= allowed + patient.rounding for v, (_, _, allowed) in zip(values, cases, strict=True))
    said = f"forward KL of the student from itself: {values[0]:.2g} nats (allowed {ZERO + patient.rounding:.0e})"
    if len(cases) > 1:
        said += f", the chosen loss: {values[1]:.2g} ({ROUNDED + patient.rounding:.0e})"
    # the largest, and nan before any number
    return Finding("student = teacher", "ok" if good else "FAIL", said, MISALIGNED, float(np.max(values)))


def shift_raises_the_loss(patient: Patient) -> Finding:
    """Forward KL from the student's states moved by one token, against the textbook's from its own logits."""
    with torch.no_grad():
        rows = patient.in_order(patient.batch())
        log_q_NV = own_logits(patient.student, rows, shared=patient.shared).double().log_softmax(-1)
        expected = float(kl_div(log_q_NV, log_q_NV.roll(1, 0), log_target=True, reduction="sum")) / len(log_q_NV)
    # with gradients, so that the value is that of the code which trains
    found = divergence_of(patient, make_loss("fkl"), _Shifted(patient.itself()), temperature=1.0)
    # a head of zeros says the same everywhere: then nothing rises, by the textbook either
    agrees = abs(found - expected) <= 10 * (EQUAL + patient.rounding) * expected + ZERO
    said = f"forward KL with the teacher moved by one token: {found:.4g} nats, by the textbook {expected:.4g}"
    return Finding("shift", "ok" if agrees else "FAIL", said, MISALIGNED, found)


def teacher_is_its_model(patient: Patient) -> Finding:
    """The teacher's states through its head, against its model's own logits; of a cache, that they are finite."""
    assert patient.teacher is not None
    batch = patient.batch()
    with torch.no_grad():
        if isinstance(patient.teacher, TopkTeacher):
            found_NV = patient.teacher.buckets(batch)[1].exp().sum(-1, keepdim=True) - 1
            return within(
                "teacher", float(found_NV.abs().max()), EQUAL, measured="buckets of the lossy cache sum to 1, off by",
                remedy="the cache is damaged or another set's: remove it, and it is made again",
            )  # fmt: skip
        found_NV = patient.teacher.head(patient.teacher.hidden(batch)).float()
        if not isinstance(patient.teacher, LiveTeacher):
            figure = float(found_NV.abs().max())
            said = f"logits of the cached teacher are at most {figure:.3g}"
            remedy = "the cached states are not finite: look at the teacher's weights, then make the cache again"
            return Finding("teacher", "ok" if figure < float("inf") else "FAIL", said, remedy, figure)
        expected_NV = own_logits(patient.teacher.model, patient.in_order(batch), shared=patient.shared)
    figure = float("inf")
    if found_NV.shape == expected_NV.shape:
        figure = float((found_NV - expected_NV).abs().max() / expected_NV.std().clamp_min(1e-6))
    sixteen = patient.teacher.head.weight_VD.dtype != torch.float32 or patient.rounding > 1e-3
    return within(
        "teacher", figure, 5e-2 if sixteen else 1e-3, measured="teacher's logits as the loss gets them against its "
        "model's own, of their spread", remedy="the teacher is read at other positions than it predicts from, or its "
        "logits are not finite",
    )  # fmt: skip


def chunks_agree(patient: Patient) -> Finding:
    """Value and gradient of the chosen loss, projected all at once and in chunks of two sizes."""
    teacher = patient.teacher if patient.loss.needs_teacher else None
    results = []
    for chunk_tokens in (None, *CHUNKS):
        total = sums_of(patient, patient.loss, teacher, chunk_tokens=chunk_tokens, **patient.mix)[0]
        weight = patient.student.get_output_embeddings().weight
        (gradient,) = torch.autograd.grad(total, weight)
        results.append((total.detach(), gradient))
    off = [float((other - whole).norm() / whole.norm()) for chunked in results[1:]
           for other, whole in zip(chunked, results[0], strict=True)]  # fmt: skip
    return within(
        "chunks", float(np.max(off)), ZERO * 10 + patient.rounding, measured="value and gradient in chunks of "
        f"{' and '.join(map(str, CHUNKS))} tokens against one, relative", remedy="a chunk is lost or counted twice",
    )  # fmt: skip


def every_loss_is_a_divergence(patient: Patient) -> Finding:
    """D(p, p) = 0 and D(p, q) >= 0 for every loss with its own defaults, on these models' logits."""
    rows, teacher = patient.in_order(patient.batch())[:2], patient.teacher
    with torch.no_grad():
        q_NV = own_logits(patient.student, rows, shared=patient.shared)
        p_NV = q_NV.roll(1, 0)
        if isinstance(teacher, LiveTeacher):
            p_NV = own_logits(teacher.model, rows, shared=patient.shared)
    names, faults = [name for name, kind in LOSSES.items() if kind.needs_teacher], []
    for name in names:
        loss = make_loss(name)
        # A loss may have one way for its value and another for value and gradient.
        for leaf_NV in (q_NV, q_NV.clone().requires_grad_()):
            own_N, between_N = loss(leaf_NV, q_NV).detach(), loss(leaf_NV, p_NV).detach()
            own, between = float(own_N.abs().max()), float(between_N.min())
            if not (own <= ROUNDED and between >= -ROUNDED):
                faults.append(f"{name}: D(p, p) is {own:.2g}, least D(p, q) {between:.2g} nats")
                break
    return none_of(
        "divergences", faults, len(names), of="losses at 0 from itself and never below 0",
        remedy="mend the loss of that name in kdrun/losses",
    )  # fmt: skip
