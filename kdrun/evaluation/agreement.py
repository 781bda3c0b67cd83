"""How near a student is to the data and to its teacher, token by token, on held-out responses.

Shapes: R rows, N scored tokens, C tokens of a chunk, V shared vocabulary. p = softmax(teacher logits), q = softmax of
the student's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdrun.data.batch import Batch, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.losses import divergence_diagnostics, make_loss
from kdrun.losses.buckets import bucketed_nats
from kdrun.losses.head import head_share
from kdrun.losses.interface import dot, log_probs
from kdrun.models.heads import head_of, scored_hidden_states
from kdrun.teachers.live import Teacher
from kdrun.teachers.topk import MEASURED, TopkTeacher

CHUNK_BYTES = 128 * 2**20  # of [C, V] float32 work tensors
HEAD_MASS = 0.5  # the teacher's likeliest entries up to this probability, by the rule `code` of losses/head.py


@dataclass
class Agreement:
    """`means`: over all scored tokens alike. `rows`: the mean over each row's tokens, in row order.

    Two are other means: lm_loss is the plain mean of its rows, bits_per_byte all bits over all bytes.
    """

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
    eos_id: int | None = None,
    response_bytes: Sequence[int] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Agreement:
    """Negative log-likelihoods of the data and, with a teacher, the divergences between the two (temperature 1).

    Keys: nll (nats a token), teacher_nll, fkl = KL(teacher || student), rkl, jsd, tvd, head_gap, tail_gap, akl_weight,
    top1_agreement, student_entropy, teacher_entropy; perplexity = exp(nll) in `means` only. fkl_head + fkl_tail = fkl
    and rkl_head + rkl_tail = rkl: the sums over the teacher's head and tail (rule and mass of head_gap), nats a token;
    a part may be negative. With a lossy cache: nll, top1_agreement, and topk_fkl, topk_rkl, topk_jsd, topk_tvd between
    the buckets, lower bounds of the exact ones.

    With eos_id: lm_loss, as MiniLLM's evaluation logs it (evaluate_main.py): the nats a token of a response without
    its EOS, every example counted alike, long or short. It cuts responses at 256 tokens, here they end where `encoded`
    cuts them. With response_bytes too: bits_per_byte, the bits of the same tokens over the bytes of their text, which
    compares models of different tokenizers; EOS is in neither. An empty response has 0 of both.

    Args:
        rows: vocabulary rows that both heads share; None keeps the student's.
        response_bytes: of each row, see `count_response_bytes`.
    """
    if response_bytes is not None and (eos_id is None or len(response_bytes) != len(encoded)):
        raise ValueError(f"response_bytes: needs eos_id, and one number for each of the {len(encoded)} rows")
    device = head_of(student).weight_VD.device
    rows = rows if rows is not None else head_of(student).weight_VD.shape[0]
    modes = student.training
    student.eval()
    order = np.argsort(encoded.lengths, kind="stable")
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(order)))  # over each row's tokens
    for start in range(0, len(order), batch_size):
        batch = make_batch(encoded, order[start : start + batch_size], pad_id=pad_id, device=device)
        values = _token_values(student, teacher, batch, rows=rows)
        text_N = (batch.target_N != (-1 if eos_id is None else eos_id)).double()
        values |= {"text_nll": text_N * values["nll"], "text_tokens": text_N}
        row_N = np.repeat(batch.rows, encoded.scored_lengths[batch.rows])
        for name, value_N in values.items():
            np.add.at(sums[name], row_N, value_N.numpy(force=True))
        if advance is not None:
            advance(len(batch.rows))
    student.train(modes)
    text_nll, text_tokens = sums.pop("text_nll"), sums.pop("text_tokens")
    means = {name: math.fsum(sum_R) / encoded.num_scored_tokens for name, sum_R in sums.items()}
    means["perplexity"] = math.exp(min(means["nll"], 700.0))
    per_row = {name: sum_R / encoded.scored_lengths for name, sum_R in sums.items()}
    if eos_id is not None:
        per_row["lm_loss"] = text_nll / np.maximum(text_tokens, 1)
        means["lm_loss"] = math.fsum(per_row["lm_loss"]) / len(order)
    if response_bytes is not None:
        bits = text_nll / math.log(2)
        per_row["bits_per_byte"] = bits / np.maximum(response_bytes, 1)
        means["bits_per_byte"] = math.fsum(bits) / max(sum(response_bytes), 1)
    return Agreement(means, {name: value_R.tolist() for name, value_R in per_row.items()})


def count_response_bytes(encoded: EncodedSet, tokenizer: Any) -> list[int]:
    """UTF-8 bytes of the text that each row's scored tokens stand for, without EOS.

    Counted on the decoded tokens: of a response cut at max_tokens only what is scored, and of a character that the cut
    divides nothing (byte-level tokens decode to U+FFFD there).
    """
    texts = []
    for i in range(len(encoded)):
        ids, num_prompt = encoded.row(i)
        is_whole = ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids[num_prompt : len(ids) - is_whole].tolist(), clean_up_tokenization_spaces=False)
        texts.append(text if is_whole else text.rstrip("\ufffd"))
    return [len(text.encode()) for text in texts]


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
        values = {"nll": cross_entropy(logits["student"], target_N[part], reduction="none")}
        if buckets is not None:
            values |= _bucket_values(logits["student"], *(tensor[part] for tensor in buckets))
        elif teacher is not None:
            values["teacher_nll"] = cross_entropy(logits["teacher"], target_N[part], reduction="none")
            values |= divergence_diagnostics(logits["student"], logits["teacher"], mu=HEAD_MASS)
            values |= _head_and_tail(logits["student"], logits["teacher"], values)
        for name, value in values.items():
            pieces.setdefault(name, []).append(value.double())
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def _head_and_tail(
    student_logits_CV: Tensor, teacher_logits_CV: Tensor, values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Both divergences in two parts; in validation and evaluation only, a training step does not pay for it."""
    log_q_CV, log_p_CV = log_probs(student_logits_CV, teacher_logits_CV)
    p_CV = log_p_CV.exp()
    share_CV = head_share(p_CV, mu=HEAD_MASS)
    gap_CV = (log_p_CV - log_q_CV).mul_(share_CV)
    head = {"fkl": dot(p_CV, gap_CV), "rkl": -dot(log_q_CV.exp(), gap_CV)}
    parts = {f"{name}_head": value for name, value in head.items()}
    return parts | {f"{name}_tail": values[name] - value for name, value in head.items()}


def _bucket_values(student_logits_CV: Tensor, ids_CK: Tensor, log_p_CJ: Tensor) -> dict[str, Tensor]:
    """What a lossy cache tells: divergences between the buckets, and whether both have the same likeliest entry."""
    log_q_CV = student_logits_CV.log_softmax(-1)
    values = {f"topk_{name}": bucketed_nats(make_loss(name), log_q_CV, ids_CK, log_p_CJ) for name in MEASURED}
    return {**values, "top1_agreement": (log_q_CV.argmax(-1) == ids_CK[:, 0]).to(log_q_CV.dtype)}
