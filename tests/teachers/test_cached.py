"""A cached teacher is the live one: hidden states, losses, gradients, whatever the batch."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.data.batch import make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.losses import LOSSES, make_loss
from kdrun.teachers.cached import read_head
from kdrun.teachers.live import LiveTeacher, Teacher
from kdrun.training.objective import StudentObjective
from tests.teachers.conftest import cached_teacher, gpt2, make_cache
from tests.training.conftest import END, VOCABULARY, encoded

BATCHES = ([3], [39, 0, 7], list(range(40)), [5, 4, 3, 2, 1, 31, 32, 30])


def total_and_gradient(student: Any, loss: str, batch: Any, teacher: Teacher, temperature: float) -> tuple[Any, Any]:
    student.zero_grad()
    objective = StudentObjective(
        student, make_loss(loss), rows=VOCABULARY, kd_ratio=0.7, temperature=temperature, chunk_tokens=16
    )
    total = objective(batch, teacher)[0]
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def differences(
    student: Any, live: LiveTeacher, cached: Teacher, rows: EncodedSet, *, losses: Any = None
) -> tuple[float, float]:
    """Largest relative difference of totals and of gradients (in norm) over losses, temperatures and batches."""
    totals, gradients = [0.0], [0.0]
    for loss in losses or [name for name in LOSSES if name != "sft"]:
        for temperature, numbers in zip((1.0, 2.0, 0.5, 1.0), BATCHES, strict=True):
            batch = make_batch(rows, numbers, pad_id=END, device="cpu")
            (ours, our_gradient), (theirs, their_gradient) = (
                total_and_gradient(student, loss, batch, teacher, temperature) for teacher in (cached, live)
            )
            totals.append(float((ours - theirs).abs() / theirs.abs()))
            gradients.append(float((our_gradient - their_gradient).norm() / their_gradient.norm()))
    return max(totals), max(gradients)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-13), (torch.bfloat16, 2e-2)])
def test_every_loss_and_gradient_is_the_live_teachers(
    dtype: torch.dtype, allowed: float, architecture: Any, rows: EncodedSet, tmp_path: Path
) -> None:
    """Over thirteen losses, three temperatures, four batches; the student stays fp32 (fp64) as in a run."""
    live = LiveTeacher(architecture(2, width=16).to(dtype), rows=VOCABULARY)
    identity = make_cache(tmp_path / "group" / "train", LiveTeacher(live.model, rows=None), rows, shard_bytes=2048)
    cached = cached_teacher(tmp_path / "group" / "train", identity, rows=VOCABULARY)
    student = architecture(1, width=8).to(torch.float64 if dtype == torch.float64 else torch.float32)
    assert len(cached.shards.paths) > 3
    in_total, in_gradient = differences(student, live, cached, rows)
    assert in_total <= allowed
    assert in_gradient <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stored_states_are_the_teachers_own_bits(
    dtype: torch.dtype, architecture: Any, rows: EncodedSet, tmp_path: Path
) -> None:
    """One batch, so one shape: then nothing may differ at all."""
    live = LiveTeacher(architecture(2, width=16).to(dtype), rows=None)
    cached = cached_teacher(tmp_path / "g" / "train", make_cache(tmp_path / "g" / "train", live, rows))
    batch = make_batch(rows, np.arange(40), pad_id=END, device="cpu")
    found = cached.hidden(batch)
    assert found.dtype == dtype
    assert torch.equal(found, live.hidden(batch))
    assert torch.equal(cached.head.weight_VD, live.head.weight_VD)


def test_rows_come_in_the_order_of_the_batch_from_any_shards(rows: EncodedSet, tmp_path: Path) -> None:
    """Each row alone, read with others in a shuffled batch, from one shard a row."""
    from tests.teachers.conftest import gpt2

    live = LiveTeacher(gpt2(2, width=16), rows=None)
    cached = cached_teacher(tmp_path / "g" / "train", make_cache(tmp_path / "g" / "train", live, rows, shard_bytes=1))
    assert len(cached.shards.paths) == 40
    batch = make_batch(rows, np.random.default_rng(0).permutation(40)[:23], pad_id=END, device="cpu")
    parts = [cached.hidden(make_batch(rows, [row], pad_id=END, device="cpu")) for row in batch.rows]
    assert torch.equal(cached.hidden(batch), torch.cat(parts))
    assert cached.hidden(batch.unscored()).shape == (0, 16)


def test_a_batch_of_another_set_is_refused(rows: EncodedSet, tmp_path: Path) -> None:
    from tests.teachers.conftest import gpt2

    live = LiveTeacher(gpt2(2, width=16), rows=None)
    cached = cached_teacher(tmp_path / "g" / "train", make_cache(tmp_path / "g" / "train", live, rows))
    with pytest.raises(ValueError, match="of another set"):
        cached.hidden(make_batch(encoded(40, seed=1), [1, 2], pad_id=END, device="cpu"))


def test_the_head_comes_back_with_bias_scale_and_softcap_cut_to_the_shared_rows(tmp_path: Path) -> None:
    from kdrun.models.heads import Head
    from kdrun.teachers.cached import head_rows, save_head

    head = Head(torch.randn(7, 3), torch.randn(7), scale=0.25, softcap=30.0)
    save_head(head, tmp_path)
    found = read_head(tmp_path, device="cpu", rows=5)
    assert torch.equal(found.weight_VD, head.weight_VD[:5]) and torch.equal(found.bias_V, head.bias_V[:5])
    assert (found.scale, found.softcap) == (0.25, 30.0)
    assert head_rows(tmp_path) == 7


def test_a_shard_that_vanishes_or_is_replaced_while_it_is_read_changes_nothing(
    rows: EncodedSet, tmp_path: Path
) -> None:
    live = LiveTeacher(gpt2(0, width=16), rows=None)
    cached = cached_teacher(tmp_path / "set", make_cache(tmp_path / "set", live, rows))
    batch = make_batch(rows, np.arange(40), pad_id=END, device="cpu")
    before = cached.hidden(batch)
    (shard,) = (tmp_path / "set").glob("states-*.bin")
    size = shard.stat().st_size
    shard.unlink()
    shard.write_bytes(bytes(size))
    assert torch.equal(cached.hidden(batch), before)


def test_a_shard_that_is_cut_short_while_it_is_read_is_an_error_and_not_the_end_of_the_process(
    rows: EncodedSet, tmp_path: Path
) -> None:
    live = LiveTeacher(gpt2(0, width=16), rows=None)
    cached = cached_teacher(tmp_path / "set", make_cache(tmp_path / "set", live, rows))
    (shard,) = (tmp_path / "set").glob("states-*.bin")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(UserError, match=r"states-00000.bin: is shorter than when it was opened"):
        cached.hidden(make_batch(rows, np.arange(40), pad_id=END, device="cpu"))
