"""The memory of a step without data against that of the same step with data, and the batches of the real loop."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from kdrun.data.batch import make_batch
from kdrun.losses import make_loss
from kdrun.native.products import onednn_is_better
from kdrun.planning import memory
from kdrun.planning.training import Training, largest_micro_batch, remedies
from kdrun.teachers.live import LiveTeacher
from kdrun.training.batches import RowOrder, micro_batches
from kdrun.training.memory import recompute_activations
from kdrun.training.objective import StudentObjective
from tests.training.conftest import END, encoded

VOCABULARY = 600


def gpt2(width: int) -> Any:
    return hf.GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=3, n_head=2, n_positions=32,
                         bos_token_id=END, eos_token_id=END)  # fmt: skip


def llama(width: int) -> Any:
    return hf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip


def training(config: Any, teacher: Any, **changes: Any) -> Training:
    rows = encoded(64)
    given = Training(
        student=config, teacher=teacher, use="live", lengths=rows.lengths, scored=rows.scored_lengths.astype(np.int64),
        epochs=1, max_steps=None, batch_size=64, micro_batch_size=None, seed=0, precision="fp32", teacher_dtype="fp32",
        checkpointing=False, chunk_tokens=16,
    )  # fmt: skip
    return replace(given, **changes)


def real_peak(given: Training) -> int:
    """Bytes alive at the highest moment of the real step, counted at every operation."""
    onednn_is_better()  # tries some products when it is asked for the first time
    ledger = memory._Ledger(0)
    rows = encoded(64)
    with ledger:
        student = hf.AutoModelForCausalLM.from_config(given.student).train()
        if given.checkpointing:
            recompute_activations(student)
        _moments = [torch.zeros_like(p) for p in student.parameters() for _ in range(2)]
        teacher = LiveTeacher(hf.AutoModelForCausalLM.from_config(given.teacher), rows=None)
        objective = StudentObjective(student, make_loss("fkl"), kd_ratio=0.5, chunk_tokens=16)
        pieces = list(micro_batches(np.argsort(rows.lengths, kind="stable"), given.micro_batch_size))
        for piece in pieces[-2:]:
            with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
                total = objective(make_batch(rows, piece, pad_id=END, device="cpu"), teacher)[0]
            total.backward()
            del total
    return sum(ledger.at_peak.values())


@pytest.fixture
def step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No phase before the step, and no C library that keeps anything."""
    for name, value in {"FIRST_LOOK_BYTES": 0, "VALIDATION_TENSORS": 0, "KEPT_BYTES": {}}.items():
        monkeypatch.setattr(memory, name, value)


@pytest.mark.parametrize("family", [gpt2, llama])
@pytest.mark.parametrize(
    "changes",
    [{}, {"micro_batch_size": 32}, {"checkpointing": True}, {"precision": "bf16"}],
    ids=["whole", "two micro-batches", "checkpointing", "bf16"],
)
def test_a_step_without_data_holds_what_the_real_one_holds(
    family: Any, changes: dict[str, Any], step_alone: None
) -> None:
    given = training(family(64), family(96), **changes)
    found = memory.training_memory(given, "cpu")
    assert sum(found.values()) == pytest.approx(real_peak(given), rel=0.05)
    num_bytes = {role: 4 * memory.parameters(getattr(given, role)) for role in ("student", "teacher")}
    assert found["optimiser"] == 2 * num_bytes["student"]
    assert found["weights"] == pytest.approx(num_bytes["student"], rel=0.03), "and the buffers"
    assert found["teacher"] > num_bytes["teacher"]


def test_remedies_are_the_words_that_save_memory() -> None:
    given = training(gpt2(64), gpt2(96), batch_size=8)
    found = remedies(given)
    assert list(found) == [
        "train.micro_batch_size=4", "train.micro_batch_size=2", "train.micro_batch_size=1",
        "train.gradient_checkpointing=true", "teacher=cached", "pair.teacher_dtype=bf16", "train.precision=bf16",
    ]  # fmt: skip
    before = memory.training_memory(given, "cpu")
    for word, part in {"teacher=cached": "teacher", "train.micro_batch_size=1": "activations"}.items():
        assert memory.training_memory(found[word], "cpu")[part] <= 0.7 * before[part]


@pytest.mark.parametrize(("micro", "ranks"), [(None, 1), (16, 1), (5, 1), (None, 3), (5, 3)])
def test_the_largest_micro_batch_is_one_that_the_loop_makes(micro: int | None, ranks: int) -> None:
    rows = encoded(64)
    given = training(gpt2(64), None, batch_size=24, micro_batch_size=micro, epochs=2, ranks=ranks)
    order, batches = RowOrder(64, batch_size=24, seed=0), []
    for step, rank in itertools.product(range(6), range(ranks)):
        numbers = order.rows(step)[rank::ranks]
        numbers = numbers[np.argsort(rows.lengths[numbers], kind="stable")]
        batches += [make_batch(rows, piece, pad_id=END, device="cpu") for piece in micro_batches(numbers, micro)]
    largest = max(batches, key=lambda batch: int(rows.lengths[batch.rows].sum()))
    found = largest_micro_batch(given, "cpu")
    assert given.num_steps == 6
    assert found.groups == tuple(tuple(group.ids_BT.shape) for group in largest.groups)
    assert sum(found.scored) == largest.num_scored
    assert found.accumulates == (micro is not None)
