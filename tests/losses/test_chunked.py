"""The chunked objective against the plain one: the same value and gradients, without the logits of all tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrun.losses import (
    LOSSES,
    Loss,
    chunked_linear_loss,
    chunked_objective,
    divergence_diagnostics,
    make_loss,
    row_blocks,
)
from kdrun.losses.chunked import CHUNK_BYTES, WORK_TENSORS, default_chunk_tokens

N, V, D, E = 11, 23, 5, 6


@dataclass(frozen=True)
class Inputs:
    """Hidden states, heads with biases, and targets of both models."""

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor
    target: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.student_hidden, self.student_weight, self.student_bias]

    def chunked(self, loss: Loss, **options: Any) -> Any:
        return chunked_objective(
            loss,
            self.student_hidden,
            self.student_weight,
            self.teacher_hidden,
            self.teacher_weight,
            self.target,
            student_bias_V=self.student_bias,
            teacher_bias_V=self.teacher_bias,
            **options,
        )

    def plain(self, loss: Loss, *, kd_ratio: float = 1.0, temperature: float = 1.0) -> Tensor:
        """The objective written down with whole logits and torch's cross-entropy."""
        student = self.student_hidden @ self.student_weight.T + self.student_bias
        teacher = self.teacher_hidden @ self.teacher_weight.T + self.teacher_bias
        cross_entropy = torch.nn.functional.cross_entropy(student, self.target, reduction="sum")
        if not loss.needs_teacher:
            return cross_entropy
        divergence = loss(student / temperature, teacher / temperature).sum()
        return (1 - kd_ratio) * cross_entropy + kd_ratio * temperature**2 * divergence


@pytest.fixture
def inputs(random_logits: Callable[..., Tensor]) -> Inputs:
    shapes = [(N, D), (V, D), (V,), (N, E), (V, E), (V,)]
    tensors = [random_logits(*shape, seed=seed, spread=1.0) for seed, shape in enumerate(shapes)]
    for tensor in tensors[:3]:
        tensor.requires_grad_()
    return Inputs(*tensors, target=torch.randint(V, (N,), generator=torch.Generator().manual_seed(9)))


def _assert_same(chunked: Tensor, plain: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(chunked, plain)
    plain_gradients = torch.autograd.grad(plain, leaves)
    for found, expected in zip(torch.autograd.grad(chunked, leaves), plain_gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kd_ratio", "temperature"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.5, 2.0)])
def test_value_and_gradients_are_those_of_the_plain_path(loss, inputs, kd_ratio, temperature):
    plain = inputs.plain(loss, kd_ratio=kd_ratio, temperature=temperature)
    found = inputs.chunked(loss, kd_ratio=kd_ratio, temperature=temperature, chunk_tokens=4)
    _assert_same(found.total, plain, inputs.leaves)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 11, None])
def test_value_and_gradients_do_not_depend_on_the_chunk(inputs, chunk_tokens):
    found = inputs.chunked(make_loss("akl"), kd_ratio=0.5, chunk_tokens=chunk_tokens)
    _assert_same(found.total, inputs.plain(make_loss("akl"), kd_ratio=0.5), inputs.leaves)


def test_gradients_are_the_slope_of_the_value_of_the_same_objective(inputs):
    def total(*leaves: Tensor) -> Tensor:
        moved = replace(inputs, student_hidden=leaves[0], student_weight=leaves[1], student_bias=leaves[2])
        return moved.chunked(
            make_loss("jsd"), kd_ratio=0.7, temperature=1.5, chunk_tokens=4, student_scale=0.5, student_softcap=3.0
        ).total

    assert torch.autograd.gradcheck(total, inputs.leaves)


def test_cross_entropy_and_divergence_are_sums_in_nats_without_temperature_squared(inputs):
    found = inputs.chunked(make_loss("fkl"), kd_ratio=0.25, temperature=2.0, chunk_tokens=4)
    torch.testing.assert_close(found.cross_entropy, inputs.plain(make_loss("sft")).detach())
    torch.testing.assert_close(found.divergence, inputs.plain(make_loss("fkl"), temperature=2.0).detach() / 4)
    torch.testing.assert_close(found.total.detach(), 0.75 * found.cross_entropy + 0.25 * 4 * found.divergence)
    assert not found.cross_entropy.requires_grad
    assert not found.divergence.requires_grad
    unsquared = inputs.chunked(make_loss("fkl"), kd_ratio=0.25, temperature=2.0, temperature_squared=False)
    torch.testing.assert_close(unsquared.total.detach(), 0.75 * found.cross_entropy + 0.25 * found.divergence)


def test_what_was_not_computed_is_nan(inputs):
    assert inputs.chunked(make_loss("sft")).divergence.isnan()
    without_target = replace(inputs, target=None).chunked(make_loss("fkl"))
    assert without_target.cross_entropy.isnan()
    torch.testing.assert_close(without_target.total, inputs.plain(make_loss("fkl")))


def test_chunked_linear_loss_is_the_total(inputs):
    positional = (inputs.student_hidden, inputs.student_weight, inputs.teacher_hidden, inputs.teacher_weight)
    found = chunked_linear_loss(make_loss("akl"), *positional, inputs.target, 4, 0.5, 2.0)
    no_bias = replace(inputs, student_bias=torch.zeros(V), teacher_bias=torch.zeros(V))
    _assert_same(found, no_bias.plain(make_loss("akl"), kd_ratio=0.5, temperature=2.0), inputs.leaves[:2])


def test_scale_and_softcap_of_both_heads(inputs):
    found = inputs.chunked(
        make_loss("rkl"), chunk_tokens=4, student_scale=0.5, teacher_scale=0.7, student_softcap=2.0, teacher_softcap=3.0
    )
    student = 2 * torch.tanh(0.5 * (inputs.student_hidden @ inputs.student_weight.T + inputs.student_bias) / 2)
    teacher = 3 * torch.tanh(0.7 * (inputs.teacher_hidden @ inputs.teacher_weight.T + inputs.teacher_bias) / 3)
    _assert_same(found.total, make_loss("rkl")(student, teacher).sum(), inputs.leaves)


@pytest.mark.parametrize("name", list(LOSSES))
def test_equal_student_and_teacher_give_less_than_a_millionth_of_a_nat(name, random_logits):
    if name == "sft":
        return
    hidden, weight = random_logits(40, 16, spread=1.0).float(), random_logits(500, 16, seed=1, spread=1.0).float()
    hidden.requires_grad_()
    total = chunked_linear_loss(make_loss(name), hidden, weight, hidden.detach(), weight, chunk_tokens=16)
    total.backward()
    assert abs(total.item()) / 40 < 1e-6
    assert hidden.grad.abs().max() < 1e-5


def test_only_the_needed_gradients_exist(inputs):
    inputs.student_weight.requires_grad_(False)
    inputs.chunked(make_loss("fkl")).total.backward()
    assert inputs.student_weight.grad is None
    assert inputs.student_hidden.grad is not None
    inputs.teacher_hidden.requires_grad_()
    inputs.chunked(make_loss("fkl")).total.backward()
    assert inputs.teacher_hidden.grad is None


def test_without_gradient_the_sums_are_the_same_and_no_graph_is_kept(loss, inputs):
    expected = inputs.chunked(loss, kd_ratio=0.5, chunk_tokens=4)
    with torch.no_grad():
        found = inputs.chunked(loss, kd_ratio=0.5, chunk_tokens=4)
    assert not found.total.requires_grad
    torch.testing.assert_close(found.total, expected.total.detach())
    torch.testing.assert_close(found.divergence, expected.divergence, equal_nan=True)


def test_the_incoming_gradient_multiplies_and_backward_may_run_twice(inputs):
    total = inputs.chunked(make_loss("fkl")).total
    (once,) = torch.autograd.grad(total, inputs.student_hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(total / 8, inputs.student_hidden)
    torch.testing.assert_close(scaled, once / 8)


def test_a_tied_weight_gets_the_gradient_of_both_uses(inputs):
    """The weight is the embedding too: hidden states come from it, and an extra term uses it once more."""

    def tied(objective: Callable[[Inputs], Tensor]) -> Tensor:
        hidden = torch.tanh(inputs.student_weight[inputs.target])
        return objective(replace(inputs, student_hidden=hidden)) + inputs.student_weight.square().sum()

    chunked = tied(lambda x: x.chunked(make_loss("akl"), chunk_tokens=4).total)
    _assert_same(chunked, tied(lambda x: x.plain(make_loss("akl"))), inputs.leaves[1:])


def test_no_tokens_give_a_zero_that_is_connected_to_the_graph(loss, inputs):
    empty = replace(
        inputs,
        student_hidden=inputs.student_hidden.detach()[:0].requires_grad_(),
        teacher_hidden=inputs.teacher_hidden[:0],
        target=inputs.target[:0],
    )
    total = empty.chunked(loss, kd_ratio=0.5).total
    total.backward()
    assert total.item() == 0
    assert empty.student_hidden.grad.shape == (0, D)
    assert (inputs.student_weight.grad == 0).all()
    assert (inputs.student_bias.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", ["same", torch.float32])
def test_half_precision_hidden_states_give_float32_sums_and_gradients_in_the_inputs_dtypes(inputs, dtype, weight_dtype):
    half = replace(
        inputs,
        student_hidden=inputs.student_hidden.detach().to(dtype).requires_grad_(),
        student_weight=inputs.student_weight.detach()
        .to(dtype if weight_dtype == "same" else weight_dtype)
        .requires_grad_(),
        student_bias=inputs.student_bias.detach().to(dtype).requires_grad_(),
        teacher_hidden=inputs.teacher_hidden.to(dtype),
        teacher_weight=inputs.teacher_weight.to(dtype),
        teacher_bias=inputs.teacher_bias.to(dtype),
    )
    total = half.chunked(make_loss("akl"), kd_ratio=0.5, chunk_tokens=4).total
    expected = inputs.plain(make_loss("akl"), kd_ratio=0.5)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=0.02, atol=0)
    pairs = zip(
        half.leaves, torch.autograd.grad(total, half.leaves), torch.autograd.grad(expected, inputs.leaves), strict=True
    )
    for leaf, found, exact in pairs:
        assert found.dtype == leaf.dtype
        assert (found.double() - exact).norm() < 0.03 * exact.norm()


def test_float16_gradients_below_its_range_survive_until_the_loss_scale_arrives():
    """Every q - p is about 1e-9, under float16's smallest 6e-8; a loss scale of 2^16 must still see them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4096, 8, generator=generator).half().requires_grad_()
    hidden = (1e-2 * torch.randn(4, 8, generator=generator)).half()
    teacher_hidden = (hidden.float() * 1.01).half()
    total = chunked_linear_loss(make_loss("fkl"), hidden, weight, teacher_hidden, weight.detach())
    (scaled,) = torch.autograd.grad(total * 2**16, weight)
    assert scaled.count_nonzero() > 0.9 * scaled.numel()


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(inputs, weight_dtype):
    as_float32 = replace(
        inputs,
        student_hidden=inputs.student_hidden.detach().float().requires_grad_(),
        student_weight=inputs.student_weight.detach().to(weight_dtype).requires_grad_(),
        student_bias=inputs.student_bias.detach().float().requires_grad_(),
        teacher_hidden=inputs.teacher_hidden.float(),
        teacher_weight=inputs.teacher_weight.to(weight_dtype),
        teacher_bias=inputs.teacher_bias.float(),
    )
    outside = as_float32.chunked(make_loss("jsd"), chunk_tokens=4).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = as_float32.chunked(make_loss("jsd"), chunk_tokens=4).total
        gradients = torch.autograd.grad(inside, as_float32.leaves)
    assert torch.equal(inside, outside)
    for found, expected in zip(gradients, torch.autograd.grad(outside, as_float32.leaves), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_value_and_gradients_do_not_depend_on_the_block_of_rows(inputs, rows, monkeypatch):
    monkeypatch.setitem(row_blocks.BLOCK_BYTES, "cpu", rows * 4 * V)
    found = inputs.chunked(make_loss("akl"), kd_ratio=0.5, temperature=2.0, chunk_tokens=8)
    _assert_same(found.total, inputs.plain(make_loss("akl"), kd_ratio=0.5, temperature=2.0), inputs.leaves)


@pytest.mark.parametrize("keep", [True, False])
def test_a_backward_pass_copies_the_gradient_only_if_the_graph_is_kept(inputs, keep):
    """Else the saved gradient is scaled in place and becomes the leaf's: no second tensor as large as the head."""
    total = inputs.chunked(make_loss("fkl"), chunk_tokens=4).total / 3
    saved = [x.data_ptr() for x in total.grad_fn.next_functions[0][0].saved_tensors]
    total.backward(retain_graph=keep)
    assert (inputs.student_weight.grad.data_ptr() in saved) is not keep


def test_default_chunk_fits_the_budget_and_stays_between_16_and_the_number_of_tokens():
    gpt2 = default_chunk_tokens(10_000, 50257, "cpu")
    assert gpt2 == 208
    assert gpt2 * WORK_TENSORS * 4 * 50257 <= CHUNK_BYTES["cpu"] < (gpt2 + 16) * WORK_TENSORS * 4 * 50257
    assert default_chunk_tokens(1024, 50257, "cpu") == 208  # five chunks, the last with 192
    assert default_chunk_tokens(10_000, 10_000_000, "cpu") == 16
    assert default_chunk_tokens(5, 50257, "cpu") == 5
    assert default_chunk_tokens(800, 50257, "cpu") == 208  # 200 each, rounded up to a multiple of 16
    assert default_chunk_tokens(10_000, 50257, "cuda") > gpt2
    assert default_chunk_tokens(0, 50257, "cpu") == 1


def test_probe_sees_the_logits_of_the_first_tokens_once(inputs):
    seen: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def probe(student: Tensor, teacher: Tensor) -> None:
        seen.append((student.clone(), teacher.clone(), divergence_diagnostics(student, teacher)))

    inputs.chunked(make_loss("fkl"), temperature=2.0, chunk_tokens=4, probe=probe, probe_tokens=3)
    ((student, teacher, values),) = seen
    torch.testing.assert_close(
        student, (inputs.student_hidden @ inputs.student_weight.T + inputs.student_bias)[:3].detach()
    )
    torch.testing.assert_close(teacher, (inputs.teacher_hidden @ inputs.teacher_weight.T + inputs.teacher_bias)[:3])
    assert not values["fkl"].requires_grad


def test_probe_works_for_a_loss_without_teacher_if_a_teacher_is_given(inputs):
    seen: list[Tensor] = []
    total = inputs.chunked(make_loss("sft"), probe=lambda student, teacher: seen.append(teacher)).total
    assert [len(x) for x in seen] == [N]
    torch.testing.assert_close(total, inputs.plain(make_loss("sft")))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"target": None}, {"kd_ratio": 0.5}, "target_N is missing"),
        ({"teacher_hidden": None}, {}, "needs a teacher"),
        ({"teacher_hidden": torch.zeros(N + 1, E)}, {}, "11 tokens of the student, but 12 of the teacher"),
        ({"teacher_weight": torch.zeros(V + 1, E)}, {}, "cut both to the common vocabulary"),
        ({"target": torch.zeros(N + 1).long()}, {}, r"expected \[11\]"),
        ({}, {"kd_ratio": 1.5}, "kd_ratio=1.5"),
        ({}, {"temperature": 0.0}, "temperature=0.0"),
        ({}, {"chunk_tokens": -1}, "chunk_tokens=-1"),
    ],
)
def test_what_cannot_be_one_objective_is_refused(inputs, change, options, message):
    with pytest.raises(ValueError, match=message):
        replace(inputs, **change).chunked(make_loss("fkl"), **options)
