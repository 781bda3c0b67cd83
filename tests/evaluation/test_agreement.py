"""Agreement with the teacher against the plain computation on whole logits."""

from typing import Any

import pytest
import torch

from kdrun.data.scored import collate
from kdrun.evaluation import agreement as module
from kdrun.evaluation.agreement import agreement
from kdrun.teachers.live import LiveTeacher
from tests.training.conftest import END, encoded, tiny


@pytest.fixture
def models() -> tuple[Any, Any]:
    return tiny(1), tiny(2, width=16)


def test_every_mean_is_that_of_the_plain_computation(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = models
    rows = encoded(13)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)  # chunks of 16 tokens
    found = agreement(student, LiveTeacher(teacher, rows=None), rows, pad_id=END, batch_size=4).means
    ids, labels = collate([rows.row(i) for i in range(13)], END)
    keep = labels[:, 1:] != -100
    with torch.no_grad():
        log_q = student(input_ids=ids).logits[:, :-1][keep].log_softmax(-1)
        log_p = teacher(input_ids=ids).logits[:, :-1][keep].log_softmax(-1)
    p, q, target = log_p.exp(), log_q.exp(), labels[:, 1:][keep]
    expected = {
        "nll": -log_q.gather(1, target[:, None]),
        "teacher_nll": -log_p.gather(1, target[:, None]),
        "fkl": (p * (log_p - log_q)).sum(-1),
        "rkl": (q * (log_q - log_p)).sum(-1),
        "tvd": (p - q).abs().sum(-1) / 2,
        "teacher_entropy": -(p * log_p).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double(),
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(float(values.mean()), rel=1e-4), name
    assert found["head_gap"] + found["tail_gap"] == pytest.approx(2 * found["tvd"], rel=1e-4)
    assert found["perplexity"] == pytest.approx(float(expected["nll"].mean().exp()), rel=1e-4)


def test_a_model_agrees_with_itself_entirely(models: tuple[Any, Any]) -> None:
    found = agreement(models[0], LiveTeacher(models[0], rows=None), encoded(5), pad_id=END, batch_size=2).means
    assert found["fkl"] == pytest.approx(0, abs=1e-6)
    assert found["top1_agreement"] == 1
    assert found["nll"] == found["teacher_nll"]


def test_values_of_a_row_do_not_depend_on_its_batch(models: tuple[Any, Any]) -> None:
    student, teacher = models[0], LiveTeacher(models[1], rows=None)
    one = agreement(student, teacher, encoded(9), pad_id=END, batch_size=1)
    many = agreement(student, teacher, encoded(9), pad_id=END, batch_size=9)
    for name, values in one.rows.items():
        assert values == pytest.approx(many.rows[name], rel=1e-4, abs=1e-7), name


def test_heads_are_cut_to_the_shared_rows(models: tuple[Any, Any]) -> None:
    student, teacher = models[0], LiveTeacher(models[1], rows=None)
    with torch.no_grad():
        student.transformer.wte.weight[35:] += 100  # rows that only the student has change nothing
    rows = encoded(3)
    before = agreement(tiny(1), teacher, _below(rows, 35), pad_id=END, batch_size=3, rows=35).means
    after = agreement(student, teacher, _below(rows, 35), pad_id=END, batch_size=3, rows=35).means
    assert after == pytest.approx(before)


def _below(rows: Any, limit: int) -> Any:
    from dataclasses import replace

    return replace(rows, ids=rows.ids % limit)


def test_without_a_teacher_only_the_data_is_measured(models: tuple[Any, Any]) -> None:
    assert set(agreement(models[0], None, encoded(4), pad_id=END, batch_size=2).means) == {"nll", "perplexity"}


def test_progress_counts_rows_and_the_mode_is_restored(models: tuple[Any, Any]) -> None:
    done: list[int] = []
    models[0].train()
    agreement(models[0], None, encoded(5), pad_id=END, batch_size=2, advance=done.append)
    assert sum(done) == 5
    assert models[0].training
