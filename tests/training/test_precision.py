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
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.optimizer import make_optimizer
from kdrun.training.placement import Placement

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


def test_weights_stay_float32_and_keep_updates_that_bf16_would_lose(
    student: Any, teacher: Any, rows: EncodedSet
) -> None:
    """2^-8 of a weight is bf16's step: updates of a thousandth would be rounded away."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    student = student.float()
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    optimizer = make_optimizer(student, lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    settings = LoopSettings(
        num_steps=3, batch_size=8, micro_batch_size=None, seed=0, clip_norm=None, learning_rate=lambda _: 1e-5,
        log_every=1,
    )  # fmt: skip
    seen: set[torch.dtype] = set()
    student.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    loop = Loop(
        Placement(StudentObjective(student, make_loss("akl")), lambda: optimizer, accelerator), rows, settings,
        teacher=LiveTeacher(teacher.float(), rows=None), pad_id=END,
    )  # fmt: skip
    for step in range(3):
        loop.step(step)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == {torch.bfloat16}, "the products are of 16 bits"
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    sums = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert {value.dtype for value in sums} == {torch.float32}
    lost = [
        bool(weight.ne(before[name]).any()) and torch.equal(weight.bfloat16(), before[name].bfloat16())
        for name, weight in student.named_parameters()
    ]
    assert any(lost), "in bf16 these weights had not moved at all"
