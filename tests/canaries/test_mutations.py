"""Each fault of the field, put into the code on purpose, is found by the canary that is meant for it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kdrun.canaries import objective, written
from kdrun.canaries.checklist import CANARIES, examined, look_over
from kdrun.canaries.patient import Patient
from kdrun.canaries.start import check_first_rows
from kdrun.data import batch as batches
from kdrun.data.scored import NOT_SCORED, collate, scored_positions
from kdrun.errors import UserError
from kdrun.generation.answers import answered
from kdrun.losses import Loss, chunked
from kdrun.losses.fkl import Fkl
from kdrun.losses.taid import Taid
from kdrun.rollouts import writer
from kdrun.teachers.live import LiveTeacher
from kdrun.teachers.store import Shards
from kdrun.training.loop import Loop
from kdrun.training.objective import StudentObjective
from tests.canaries.conftest import without_ends


def failing(patient: Patient, names: set[str]) -> set[str]:
    """Those of the named canaries that fail."""
    findings = [examined(name, partial(canary, patient)) for name, canary, _ in CANARIES if name in names]
    return {finding.name for finding in findings if finding.verdict == "FAIL"}


def refused_as(patient: Patient) -> str | None:
    """The canary that keeps a training from its first step."""
    try:
        check_first_rows(patient)
    except UserError as error:
        return str(error).split("'")[1]
    return None


def test_a_training_without_a_fault_passes_every_canary(patient: Patient) -> None:
    before = {name: value.clone() for name, value in patient.student.state_dict().items()}
    found = list(look_over(patient))
    assert [(finding.name, finding.verdict) for finding in found] == [(name, "ok") for name, *_ in CANARIES]
    for name, value in patient.student.state_dict().items():
        assert torch.equal(value, before[name]), "nothing was trained"
    assert all(parameter.requires_grad for parameter in patient.student.parameters())
    figures = check_first_rows(patient)
    assert figures["scored tokens"] == sum(len(row.scored) for row in patient.hand)
    assert figures["student = teacher"] == 0
    assert figures["shift"] > 0.01


def labels_shifted_by_two(patch: pytest.MonkeyPatch) -> None:
    def shifted(labels_BT: Any) -> Any:
        index_N, target_N = scored_positions(labels_BT)
        return index_N - 1, target_N

    patch.setattr(batches, "scored_positions", shifted)


def ends_masked_as_padding(patch: pytest.MonkeyPatch) -> None:
    def masked(rows: Any, pad_id: int) -> Any:
        ids_BT, labels_BT = collate(rows, pad_id)
        return ids_BT, labels_BT.masked_fill(ids_BT == pad_id, NOT_SCORED)

    patch.setattr(batches, "collate", masked)


def prompts_scored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batches, "collate", lambda rows, pad_id: collate([(ids, 1) for ids, _ in rows], pad_id))


def padded_on_the_left(patch: pytest.MonkeyPatch) -> None:
    def left(rows: Any, pad_id: int) -> Any:
        ids_BT, labels_BT = collate(rows, pad_id)
        shifts = [ids_BT.shape[1] - len(ids) for ids, _ in rows]
        return tuple(torch.stack([row.roll(s) for row, s in zip(x, shifts, strict=True)]) for x in (ids_BT, labels_BT))

    patch.setattr(batches, "collate", left)


def teacher_shifted(patch: pytest.MonkeyPatch) -> None:
    hidden = LiveTeacher.hidden
    patch.setattr(LiveTeacher, "hidden", lambda self, batch: hidden(self, batch).roll(1, 0))


def teacher_ignored(patch: pytest.MonkeyPatch) -> None:
    """A divergence that compares the student with itself."""

    def blind(self: Loss, log_q_NV: Any, log_p_NV: Any, target_N: Any) -> Any:
        return (log_q_NV - log_q_NV.detach()).sum(-1), torch.zeros_like(log_q_NV)

    patch.setattr(Fkl, "with_gradient", blind)


def entropy_dropped(patch: pytest.MonkeyPatch) -> None:
    def without(self: Loss, log_q_NV: Any, log_p_NV: Any, target_N: Any) -> Any:
        return -(log_p_NV.exp() * log_q_NV).sum(-1), log_q_NV.exp() - log_p_NV.exp()

    patch.setattr(Fkl, "with_gradient", without)


def gradient_of_another_loss(patch: pytest.MonkeyPatch) -> None:
    right = Fkl.with_gradient

    def wrong(self: Loss, *log_probs: Any) -> Any:
        nats_N, gradient_NV = right(self, *log_probs)
        return nats_N, 2 * gradient_NV

    patch.setattr(Fkl, "with_gradient", wrong)


def divided_by_each_micro_batch(patch: pytest.MonkeyPatch) -> None:
    forward = StudentObjective.forward

    def divided(self: Any, batch: Any, teacher: Any = None, probe: Any = None) -> Any:
        total, *parts = forward(self, batch, teacher, probe)
        return total * 20 / batch.num_scored, *parts

    patch.setattr(StudentObjective, "forward", divided)


def divided_by_each_rank(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loop, "_sum", lambda self, values: list(values))


def divided_twice(patch: pytest.MonkeyPatch) -> None:
    sums = Loop._sum
    patch.setattr(Loop, "_sum", lambda self, values: [2 * value for value in sums(self, values)])


def last_chunk_lost(patch: pytest.MonkeyPatch) -> None:
    run = chunked._Chunks.run

    def losing(self: Any, rows: slice) -> Any:
        gradient_CV = run(self, rows)
        if rows.start and rows.stop == len(self.hidden_ND):
            self.own_N[rows] = self.cross_entropy_N[rows] = 0
            return gradient_CV * 0
        return gradient_CV

    patch.setattr(chunked._Chunks, "run", losing)


def not_a_number_in_the_smallest_chunks(patch: pytest.MonkeyPatch) -> None:
    whole = objective.sums_of

    def spoilt(*given: Any, chunk_tokens: int | None = None, **mix: Any) -> Any:
        total, *parts = whole(*given, chunk_tokens=chunk_tokens, **mix)
        return total * (float("nan") if chunk_tokens == objective.CHUNKS[-1] else 1), *parts

    patch.setattr(objective, "sums_of", spoilt)


def observed_each_micro_batch(patch: pytest.MonkeyPatch) -> None:
    forward = StudentObjective.forward

    def observing(self: Any, *words: Any) -> Any:
        if isinstance(self.loss, Taid) and self.training is False and self.student.training is False:
            self.loss.observe(1.0, 0.1 + self.loss.t / 2)
        return forward(self, *words)

    patch.setattr(StudentObjective, "forward", observing)


def cache_rows_exchanged(patch: pytest.MonkeyPatch) -> None:
    read = Shards.read

    def exchanged(self: Any, rows: Any, into: Any) -> None:
        read(self, rows, into)
        into[:] = into[::-1].copy()

    patch.setattr(Shards, "read", exchanged)


def ends_of_own_text_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writer, "answered", lambda *given, eos_id: without_ends(answered(*given, eos_id=eos_id)))


def first_own_token_unscored(patch: pytest.MonkeyPatch) -> None:
    def late(*given: Any, eos_id: int) -> Any:
        texts = answered(*given, eos_id=eos_id)
        return replace(texts, prompt_lengths=texts.prompt_lengths + 1)

    patch.setattr(writer, "answered", late)


def another_token_written(patch: pytest.MonkeyPatch) -> None:
    def other(encoded: Any, rows: Any, texts: Any, *, eos_id: int) -> Any:
        changed = [replace(text, token_ids=[*text.token_ids[:-1], (text.token_ids[-1] + 1) % 256]) for text in texts]
        return answered(encoded, rows, changed, eos_id=eos_id)

    patch.setattr(writer, "answered", other)


@pytest.mark.parametrize("mutate", [ends_of_own_text_lost, first_own_token_unscored, another_token_written])
def test_a_fault_in_the_students_own_text_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ends are lost, the student is one that stops at once."""
    model, eos = patient.student, patient.tokenizer.eos_token_id
    if mutate is ends_of_own_text_lost:
        model.transformer.ln_f.bias.data += 10 * model.transformer.wte.weight.data[eos]
    assert written.own_text_is_scored_whole(patient).verdict == "ok"
    mutate(monkeypatch)
    assert failing(patient, {"own text"}) == {"own text"}


@pytest.mark.parametrize(
    ("mutate", "names", "refused"),
    [
        (labels_shifted_by_two, {"positions", "cross-entropy", "learned tokens", "gradient"}, "cross-entropy"),
        (ends_masked_as_padding, {"scored tokens", "positions", "learned tokens", "gradient"}, "scored tokens"),
        (prompts_scored, {"scored tokens", "positions", "learned tokens", "gradient"}, "scored tokens"),
        (padded_on_the_left, {"positions", "cross-entropy", "learned tokens"}, "cross-entropy"),
        (teacher_shifted, {"student = teacher", "teacher", "gradient"}, "student = teacher"),
        (teacher_ignored, {"shift", "gradient"}, "shift"),
        (entropy_dropped, {"student = teacher", "cache", "shift", "divergences"}, "student = teacher"),
        (gradient_of_another_loss, {"gradient"}, None),
        (divided_by_each_micro_batch, {"micro-batches", "gradient"}, None),
        (divided_by_each_rank, {"processes"}, None),
        (divided_twice, {"gradient"}, None),
        (last_chunk_lost, {"chunks"}, None),
        (not_a_number_in_the_smallest_chunks, {"chunks"}, None),
        (observed_each_micro_batch, {"taid"}, None),
        (cache_rows_exchanged, {"cache"}, None),
    ],
)
def test_a_fault_is_found_by_its_canary(
    mutate: Callable[[pytest.MonkeyPatch], None], names: set[str], refused: str | None, patient: Patient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mutate(monkeypatch)
    assert failing(patient, names) == names
    assert refused_as(patient) == refused


def test_rows_that_lost_their_end_are_found(patient: Patient) -> None:
    broken = replace(patient, encoded=without_ends(patient.encoded))
    names = {"rows", "scored tokens", "end of text"}
    assert failing(broken, names) == names
    assert refused_as(broken) == "rows"


def test_a_teacher_that_is_not_finite_is_found(patient: Patient) -> None:
    patient.teacher.model.transformer.ln_f.weight.data[0] = float("nan")  # type: ignore[union-attr]
    assert objective.teacher_is_its_model(patient).verdict == "FAIL"
    assert refused_as(patient) == "teacher"
