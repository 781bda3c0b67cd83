"""The lossy cache: a token's K largest log-probabilities and the mass of the rest, and what that leaves out.

Float32, not 16 bits: a log-probability of -10 in float16 is off by 0.004, and with a rest of 1e-3 the rounding of the
kept entries would be as large as the rest. Shapes: N scored tokens, V shared vocabulary, K entries kept, J buckets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.data.batch import Batch, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.losses import make_loss
from kdrun.losses.buckets import bucketed_nats, teacher_buckets
from kdrun.losses.interface import log_softmax
from kdrun.models.heads import head_of, scored_hidden_states
from kdrun.teachers.building import Record
from kdrun.teachers.live import LiveTeacher, refuse_not_finite
from kdrun.teachers.store import Shards

CHUNK_TOKENS = 256  # projected at a time
SAMPLE_ROWS = 64
MEASURED = ("fkl", "rkl", "jsd", "tvd")


def bytes_per_token(topk: int, vocabulary: int) -> int:
    """4 for each id, 4 for each log-probability, 4 for the rest when there is one."""
    return 8 * topk + (4 if topk < vocabulary else 0)


class TopkTeacher:
    """The buckets of one set of rows, read from the disk. At temperature 1 only."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.topk, self.rows = (int(shards.manifest["identity"][name]) for name in ("topk", "vocabulary"))

    def buckets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(ids_NK int64, log_p_NJ float32) on the batch's device.

        Raises:
            ValueError: when the batch is of another set.
        """
        device = batch.target_N.device
        if self.shards.count(batch.rows) != batch.num_scored:
            raise ValueError(f"{self.shards.folder}: the batch is of another set than the cache")
        stored = np.empty((batch.num_scored, self.shards.row_bytes), dtype=np.uint8)
        if len(stored):
            self.shards.read(batch.rows, stored)
        words_NW = torch.from_numpy(stored).view(torch.int32)
        ids_NK = words_NW[:, : self.topk].to(device, torch.int64)
        return ids_NK, words_NW[:, self.topk :].contiguous().view(torch.float32).to(device)


def topk_record(teacher: LiveTeacher, topk: int) -> Record:
    """The buckets of every scored token, over the rows of the teacher's head."""

    def of(batch: Batch) -> Tensor:
        hidden_NE = teacher.hidden(batch)
        refuse_not_finite(hidden_NE, batch)
        parts = []
        for start in range(0, len(hidden_NE), CHUNK_TOKENS):
            ids_CK, log_p_CJ = teacher_buckets(teacher.head(hidden_NE[start : start + CHUNK_TOKENS]).float(), topk)
            parts.append(torch.cat([ids_CK.to(torch.int32).view(torch.uint8), log_p_CJ.float().view(torch.uint8)], -1))
        return torch.cat(parts)

    return Record(of, bytes_per_token(topk, len(teacher.head.weight_VD)), {})


@torch.no_grad()
def truncation_error(
    teacher: LiveTeacher, student: Any, rows: EncodedSet, topk: int, *, pad_id: int, device: Any
) -> dict[str, Any]:
    """What K entries and a rest leave out, on a sample of rows: exact and bucketed means in nats a token between the
    teacher and this student, `share_lost` = 1 - bucketed / exact, and the teacher's mass in the rest."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE_ROWS, len(rows))).astype(np.int64))
    batch = make_batch(rows, chosen, pad_id=pad_id, device=device)
    place = head_of(student).weight_VD.device
    student.to(device)
    hidden = {"teacher": teacher.hidden(batch), "student": scored_hidden_states(student, batch.groups)}
    heads = {"teacher": teacher.head, "student": head_of(student).cut(len(teacher.head.weight_VD))}
    sums = {f"{name}_{kind}": 0.0 for name in MEASURED for kind in ("exact", "bucketed")} | {"rest": 0.0}
    for start in range(0, batch.num_scored, CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        teacher_CV, student_CV = (heads[role](hidden[role][part]).float() for role in ("teacher", "student"))
        ids_CK, log_p_CJ = teacher_buckets(teacher_CV, topk)
        sums["rest"] += float(log_p_CJ[:, topk:].exp().sum())
        for name in MEASURED:
            loss = make_loss(name)
            sums[f"{name}_exact"] += float(loss(student_CV, teacher_CV).sum())
            sums[f"{name}_bucketed"] += float(bucketed_nats(loss, log_softmax(student_CV), ids_CK, log_p_CJ).sum())
    student.to(place)
    means = {name: value / batch.num_scored for name, value in sums.items()}
    lost = {name: 1 - means[f"{name}_bucketed"] / means[f"{name}_exact"] if means[f"{name}_exact"] > 0 else 0.0
            for name in MEASURED}  # fmt: skip
    return {"tokens": batch.num_scored, **means, "share_lost": lost}


def describe_truncation(topk: int, found: dict[str, Any]) -> str:
    """The truncation error in one line."""
    parts = [f"{name.upper()} {found[f'{name}_exact']:.4g} exact, {found[f'{name}_bucketed']:.4g} in buckets "
             f"({found['share_lost'][name]:.1%} lost)" for name in MEASURED]  # fmt: skip
    return (
        f"teacher.topk={topk}: against the untrained student, on {found['tokens']:,} tokens: {'; '.join(parts)}; "
        f"{found['rest']:.3g} of the teacher's mass is in the rest"
    )
