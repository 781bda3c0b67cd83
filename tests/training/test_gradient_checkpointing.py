"""Activations that are computed twice are the same twice: loss and gradients do not depend on it."""

import copy
from typing import Any

import pytest
import torch

from kdrun.data.batch import make_batch
from kdrun.losses import make_loss
from kdrun.models.adapters import add_adapter
from kdrun.teachers.live import LiveTeacher
from kdrun.training.memory import recompute_activations
from kdrun.training.objective import StudentObjective

from .conftest import END, VOCABULARY, encoded
from .test_families import make


def step_of(student: Any, *, checkpointing: bool, adapter: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Nats, gradients, and how often the first layer was run; dropout draws the same each time."""
    student = copy.deepcopy(student)
    if adapter:
        add_adapter(student, r=2, alpha=8, dropout=0.3, targets=None, seed=0)
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.1)
    student.train()
    if checkpointing:
        recompute_activations(student)
    layers = student.transformer.h if hasattr(student, "transformer") else student.model.layers
    runs: list[int] = []
    (layers[0].attn if hasattr(layers[0], "attn") else layers[0].self_attn).register_forward_hook(
        lambda *_: runs.append(1)
    )
    rows, teacher = encoded(6), make("gpt2", width=16, rows=VOCABULARY, seed=2)
    torch.manual_seed(5)
    total = StudentObjective(student, make_loss("akl"), kd_ratio=0.5)(
        make_batch(rows, range(6), pad_id=END, device="cpu"), LiveTeacher(teacher, rows=None)
    )[0]
    total.backward()
    gradients = {name: w.grad for name, w in student.named_parameters() if w.grad is not None}
    return total.item(), gradients, len(runs)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_loss_and_gradients_are_equal_with_and_without(family: str, adapter: bool) -> None:
    student = make(family, width=8, rows=VOCABULARY, seed=1)
    kept, expected, once = step_of(student, checkpointing=False, adapter=adapter)
    found, gradients, twice = step_of(student, checkpointing=True, adapter=adapter)
    assert twice == 2 * once, "the layers were run again in the backward pass"
    assert found == pytest.approx(kept, rel=1e-6)
    assert gradients.keys() == expected.keys() and all((".lora_" in name) == adapter for name in gradients)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
