"""Training in bf16: the products are rounded, the divergence, the weights and their sums are not."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from kdrun.commands.assembly import choose_precision
from kdrun.data.batch import make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.losses import make_loss
from kdrun.teachers.live import LiveTeacher
from kdrun.training.objective import StudentObjective

from .conftest import END


def gradients(name: str, student: Any, teacher: Any, rows: EncodedSet, precision: str) -> tuple[float, torch.Tensor]:
    """Mean nats and all gradients, float32 master weights."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    student = copy.deepcopy(student).float()
    objective = accelerator.prepare(StudentObjective(student, make_loss(name), kd_ratio=0.5))
    batch = make_batch(rows, range(len(rows)), pad_id=END, device="cpu")
    total, _, divergence = objective(batch, LiveTeacher(copy.deepcopy(teacher).float(), rows=None))
    assert total.dtype == divergence.dtype == torch.float32
    total.backward()
    AcceleratorState._reset_state(reset_partial_state=True)
    found = [parameter.grad for parameter in student.parameters()]
    assert all(gradient.dtype == torch.float32 for gradient in found)
    return total.item() / batch.num_scored, torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "akl", "sft"])
def test_bf16_products_give_float32s_loss_and_gradient_to_bf16s_rounding(
    name: str, student: Any, teacher: Any, rows: EncodedSet
) -> None:
    exact, exact_gradient = gradients(name, student, teacher, rows, "no")
    rounded, rounded_gradient = gradients(name, student, teacher, rows, "bf16")
    assert rounded != exact, "bf16 was not used"
    assert rounded == pytest.approx(exact, rel=0.02)
    assert torch.nn.functional.cosine_similarity(exact_gradient, rounded_gradient, dim=0) > 0.995
    assert (exact_gradient - rounded_gradient).norm() < 0.1 * exact_gradient.norm()


def test_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_precision("auto", "cpu") == expected
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision("auto", "cpu") == "bf16"
    assert choose_precision("auto", "mps") == "fp32"
    assert [choose_precision(wanted, "cpu") for wanted in ("fp32", "bf16")] == ["fp32", "bf16"]
