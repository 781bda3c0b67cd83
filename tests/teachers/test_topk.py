"""The lossy cache: what is stored, what it says of its error, and that all entries kept is the exact teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdrun.data.batch import make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.evaluation.agreement import agreement
from kdrun.losses import make_loss
from kdrun.teachers.building import build
from kdrun.teachers.cached import open_cache
from kdrun.teachers.live import LiveTeacher
from kdrun.teachers.topk import TopkTeacher, bytes_per_token, describe_truncation, topk_record, truncation_error
from kdrun.training.objective import StudentObjective
from tests.teachers.conftest import Silent, gpt2, identity_of
from tests.training.conftest import END, VOCABULARY


def lossy(folder: Path, live: LiveTeacher, rows: EncodedSet, topk: int) -> TopkTeacher:
    identity = identity_of(live, rows, topk=topk, vocabulary=VOCABULARY)
    build(
        folder, rows, topk_record(live, topk), identity=identity, notes={"teacher": "t", "data": "d", "split": "train"},
        head={}, pad_id=END, device="cpu", progress=Silent, shard_bytes=4096,
    )  # fmt: skip
    return TopkTeacher(open_cache(folder, identity, key="teacher=cached"))


@pytest.fixture
def live() -> LiveTeacher:
    model = gpt2(2, width=16)
    model.transformer.wte.weight.data *= 20
    return LiveTeacher(model, rows=None)


def test_the_largest_log_probabilities_and_the_rest_come_back(
    live: LiveTeacher, rows: EncodedSet, tmp_path: Path
) -> None:
    teacher = lossy(tmp_path / "train", live, rows, 5)
    batch = make_batch(rows, [3, 30, 11], pad_id=END, device="cpu")
    ids, log_p = teacher.buckets(batch)
    expected = torch.log_softmax(live.head(live.hidden(batch)), -1)
    values, indices = expected.topk(5)
    assert torch.equal(ids, indices)
    assert torch.allclose(log_p[:, :5], values, atol=1e-5)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(len(ids)), atol=1e-5)
    assert teacher.shards.row_bytes == bytes_per_token(5, VOCABULARY) == 44
    assert bytes_per_token(VOCABULARY, VOCABULARY) == 8 * VOCABULARY


def totals(student: Any, teacher: Any, rows: EncodedSet, loss: str, **settings: Any) -> list[float]:
    batch = make_batch(rows, [1, 2, 3, 39], pad_id=END, device="cpu")
    sums = StudentObjective(student, make_loss(loss), rows=VOCABULARY, kd_ratio=0.6, **settings)(batch, teacher)
    sums[0].backward()
    return [float(value) for value in sums]


def test_with_all_entries_kept_a_training_step_is_the_exact_one(
    live: LiveTeacher, rows: EncodedSet, tmp_path: Path
) -> None:
    exact, bucketed = gpt2(1, width=8), gpt2(1, width=8)
    teacher = lossy(tmp_path / "train", live, rows, VOCABULARY)
    for loss in ("fkl", "rkl", "jsd"):
        assert totals(bucketed, teacher, rows, loss) == pytest.approx(totals(exact, live, rows, loss), rel=1e-5)
    for ours, theirs in zip(bucketed.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_agreement_is_in_bounds_that_are_named_as_such(live: LiveTeacher, rows: EncodedSet, tmp_path: Path) -> None:
    student = gpt2(1, width=8)
    exact = agreement(student, live, rows, pad_id=END, batch_size=8).means
    bound = agreement(student, lossy(tmp_path / "train", live, rows, 4), rows, pad_id=END, batch_size=8).means
    assert set(bound) == {"nll", "perplexity", "top1_agreement", "topk_fkl", "topk_rkl", "topk_jsd", "topk_tvd"}
    for name in ("fkl", "rkl", "jsd", "tvd"):
        assert 0 < bound[f"topk_{name}"] < exact[name]
    assert bound["top1_agreement"] == exact["top1_agreement"]
    assert bound["nll"] == pytest.approx(exact["nll"])


def test_the_truncation_error_is_against_the_exact_values(live: LiveTeacher, rows: EncodedSet) -> None:
    student = gpt2(1, width=8)
    found = truncation_error(live, student, rows, 4, pad_id=END, device="cpu")
    exact = agreement(student, live, rows, pad_id=END, batch_size=40).means
    assert found["tokens"] == rows.num_scored_tokens
    for name in ("fkl", "rkl", "jsd", "tvd"):
        assert found[f"{name}_exact"] == pytest.approx(exact[name], rel=1e-4)
        assert found["share_lost"][name] == pytest.approx(1 - found[f"{name}_bucketed"] / found[f"{name}_exact"])
        assert 0 < found["share_lost"][name] < 1
    assert 0 < found["rest"] < 1
    whole = truncation_error(live, student, rows, VOCABULARY, pad_id=END, device="cpu")
    assert whole["rest"] == 0
    assert whole["share_lost"]["fkl"] == pytest.approx(0, abs=1e-5)
    assert "lost)" in describe_truncation(4, found)


def test_losses_and_temperatures_that_buckets_cannot_serve_are_refused(
    live: LiveTeacher, rows: EncodedSet, tmp_path: Path
) -> None:
    teacher, student = lossy(tmp_path / "train", live, rows, 4), gpt2(1, width=8)
    with pytest.raises(ValueError, match="only f-divergences"):
        totals(student, teacher, rows, "akl")
    with pytest.raises(ValueError, match="temperature=2"):
        totals(student, teacher, rows, "fkl", temperature=2)
    assert totals(student, teacher, rows, "sft")[0] > 0
