"""How near a student is to the data and to its teacher, token by token, on held-out responses.

Shapes: N scored tokens, C tokens of a chunk, V shared vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.data.batch import Batch, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.losses import divergence_diagnostics, make_loss
from kdrun.losses.buckets import bucketed_nats
from kdrun.models.heads import head_of, scored_hidden_states
from kdrun.teachers.live import Teacher
from kdrun.teachers.topk import MEASURED, TopkTeacher

CHUNK_BYTES = 128 * 2**20  # of [C, V] float32 work tensors


@dataclass
class Agreement:
    """`means`: over all scored tokens alike. `rows`: the mean over each row's tokens, in row order."""

    means: dict[str, float]
    rows: dict[str, list[float]] = field(default_factory=dict)


@torch.no_grad()
def agreement(
    student: Any,
    teacher: Teacher | TopkTeacher | None,
    encoded: EncodedSet,
    *,
    pad_id: int,
    batch_size: int,
    rows: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Agreement:
    """Negative log-likelihoods of the data and, with a teacher, the divergences between the two (temperature 1).

    Keys: nll (nats a token), teacher_nll, fkl = KL(teacher || student), rkl, jsd, tvd, head_gap, tail_gap, akl_weight,
    top1_agreement, student_entropy, teacher_entropy; perplexity = exp(nll) in `means` only. With a lossy cache: nll,
    top1_agreement, and topk_fkl, topk_rkl, topk_jsd, topk_tvd between the buckets, lower bounds of the exact ones.

    Args:
        rows: vocabulary rows that both heads share; None keeps the student's.
    """
    device = head_of(student).weight_VD.device
    rows = rows if rows is not None else head_of(student).weight_VD.shape[0]
    modes = student.training
    student.eval()
    order = np.argsort(encoded.lengths, kind="stable")
    sums: list[dict[str, float]] = [{} for _ in order]
    counts = [0] * len(order)
    for start in range(0, len(order), batch_size):
        batch = make_batch(encoded, order[start : start + batch_size], pad_id=pad_id, device=device)
        values = _token_values(student, teacher, batch, rows=rows)
        row_N = np.repeat(batch.rows, encoded.scored_lengths[batch.rows]).tolist()
        for row in row_N:
            counts[row] += 1
        for name, value_N in values.items():
            for row, value in zip(row_N, value_N.tolist(), strict=True):
                sums[row][name] = sums[row].get(name, 0.0) + value
        if advance is not None:
            advance(len(batch.rows))
    student.train(modes)
    total = sum(counts)
    names = list(sums[0])
    means = {name: math.fsum(row[name] for row in sums) / total for name in names}
    means["perplexity"] = math.exp(min(means["nll"], 700.0))
    per_row = {name: [row[name] / count for row, count in zip(sums, counts, strict=True)] for name in names}
    return Agreement(means, per_row)


def _token_values(student: Any, teacher: Teacher | TopkTeacher | None, batch: Batch, *, rows: int) -> dict[str, Tensor]:
    """Every measure of every scored token [N], with the logits of one chunk alive at a time."""
    target_N = batch.target_N
    hidden = {"student": scored_hidden_states(student, batch.groups)}
    heads = {"student": head_of(student).cut(rows)}
    buckets = teacher.buckets(batch) if isinstance(teacher, TopkTeacher) else None
    if teacher is not None and not isinstance(teacher, TopkTeacher):
        hidden["teacher"] = teacher.hidden(batch)
        heads["teacher"] = teacher.head.cut(rows)
    chunk = max(16, CHUNK_BYTES // (8 * 4 * rows))
    pieces: dict[str, list[Tensor]] = {}
    for start in range(0, len(target_N), chunk):
        part = slice(start, start + chunk)
        logits = {role: heads[role](hidden[role][part]).float() for role in hidden}
        values = {"nll": torch.nn.functional.cross_entropy(logits["student"], target_N[part], reduction="none")}
        if buckets is not None:
            values |= _bucket_values(logits["student"], *(tensor[part] for tensor in buckets))
        elif teacher is not None:
            values["teacher_nll"] = torch.nn.functional.cross_entropy(
                logits["teacher"], target_N[part], reduction="none"
            )
            values |= divergence_diagnostics(logits["student"], logits["teacher"])
        for name, value in values.items():
            pieces.setdefault(name, []).append(value.double())
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def _bucket_values(student_logits_CV: Tensor, ids_CK: Tensor, log_p_CJ: Tensor) -> dict[str, Tensor]:
    """What a lossy cache tells: divergences between the buckets, and whether both have the same likeliest entry."""
    log_q_CV = student_logits_CV.log_softmax(-1)
    values = {f"topk_{name}": bucketed_nats(make_loss(name), log_q_CV, ids_CK, log_p_CJ) for name in MEASURED}
    return {**values, "top1_agreement": (log_q_CV.argmax(-1) == ids_CK[:, 0]).to(log_q_CV.dtype)}
