"""What holds for every loss, whatever its formula."""

import math

import pytest
import torch

from kdrun.losses import LOSSES, Loss, make_loss
from kdrun.losses.ab import Ab
from kdrun.losses.akl import Akl
from kdrun.losses.interface import drop_impossible, nats_and_gradient
from kdrun.losses.taid import Taid


def _gradient(loss: Loss, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(nats_N, gradient_NV of their sum, target entry 0)."""
    student = student.clone().requires_grad_()
    nats = loss(student, teacher, torch.zeros(len(student), dtype=torch.long))
    nats.sum().backward()
    return nats.detach(), student.grad


def test_gradient_is_the_slope_of_the_value(divergence, random_logits):
    """Against central differences in float64, unless the definition holds a part of the student constant."""
    if isinstance(divergence, Akl | Taid):
        pytest.skip("weights and target are constants by definition: checked in test_akl.py and test_taid.py")
    student = random_logits(3, 7, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(x, random_logits(3, 7, seed=2)), student)


def test_gradient_by_log_probs_is_the_gradient_of_the_call(loss, random_logits):
    student, teacher = random_logits(3, 7, seed=1), random_logits(3, 7, seed=2)
    expected_nats, expected = _gradient(loss, student, teacher)
    nats, gradient = loss.with_gradient(student.log_softmax(-1), teacher.log_softmax(-1), torch.zeros(3).long())
    torch.testing.assert_close(nats, expected_nats)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("holes", [False, True])
def test_closed_form_is_autograd_of_the_definition(divergence, random_logits, temperature, holes):
    """In float64, to 1e-10 of the norm, with the gradient in the logits; a hole is an entry at -inf for one or both."""
    logits = random_logits(6, 300, seed=1, spread=3.0).requires_grad_()
    teacher = random_logits(6, 300, seed=2, spread=3.0)
    student = logits.masked_fill(_holes(1) if holes else torch.zeros(6, 300, dtype=torch.bool), -math.inf)
    if holes:
        teacher = teacher.masked_fill(_holes(2), -math.inf)
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    expected_nats = divergence.divergence(*drop_impossible(log_q, log_p))
    (expected,) = torch.autograd.grad(expected_nats.sum(), logits)
    nats, gradient = nats_and_gradient(divergence, log_q.detach(), log_p, None)
    assert (nats - expected_nats).norm() <= 1e-10 * expected_nats.norm()
    assert (gradient / temperature - expected).norm() <= 1e-10 * expected.norm()


def _holes(seed: int) -> torch.Tensor:
    """[6, 300], a fifth of it true."""
    return torch.rand(6, 300, generator=torch.Generator().manual_seed(seed)) < 0.2


def test_losses_of_the_tables_have_a_closed_form():
    """Autograd is left to ab, alpha and amid, whose parameters make many formulas of one name."""
    by_autograd = {name for name, kind in LOSSES.items() if kind.with_gradient is Loss.with_gradient}
    assert by_autograd == {"ab", "alpha", "amid"}


def test_the_gradient_of_each_token_is_scaled_by_what_comes_in(divergence, random_logits):
    student = random_logits(4, 9, seed=1).requires_grad_()
    nats, factors = divergence(student, random_logits(4, 9, seed=2)), torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    (once,) = torch.autograd.grad(nats.sum(), student, retain_graph=True)
    (scaled,) = torch.autograd.grad((factors * nats).sum(), student)
    torch.testing.assert_close(scaled, factors[:, None] * once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_models_have_divergence_zero_and_gradient_zero(divergence, random_logits, dtype):
    logits = random_logits(5, 200, spread=3.0).to(dtype)
    nats, gradient = _gradient(divergence, logits, logits.clone())
    tolerance = 1e-6 if dtype is torch.float32 else 1e-13
    if isinstance(divergence, Ab) and divergence.alpha + divergence.beta < 0:
        tolerance *= 1e5  # terms of size p^(alpha + beta) / (alpha beta) cancel
    assert nats.abs().max() < tolerance
    assert gradient.abs().max() < tolerance


def test_value_is_never_negative(divergence, random_logits):
    for spread in (0.01, 1.0, 10.0):
        student, teacher = (random_logits(20, 50, seed=seed, spread=spread) for seed in (1, 2))
        assert divergence(student, teacher).min() >= -1e-12


def test_value_does_not_depend_on_the_order_of_the_vocabulary(divergence, random_logits):
    student, teacher = random_logits(6, 50, seed=1), random_logits(6, 50, seed=2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(divergence(student[:, order], teacher[:, order]), divergence(student, teacher))


def test_value_does_not_depend_on_the_order_of_tied_teacher_entries(divergence, random_logits):
    student, teacher = random_logits(6, 50, seed=1), random_logits(6, 50, seed=2).round()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(divergence(student[:, order], teacher[:, order]), divergence(student, teacher))


def test_value_does_not_depend_on_a_constant_added_to_logits(divergence, random_logits):
    student, teacher = random_logits(6, 50, seed=1), random_logits(6, 50, seed=2)
    torch.testing.assert_close(divergence(student + 3, teacher - 5), divergence(student, teacher))


def test_a_token_does_not_depend_on_the_other_tokens(divergence, random_logits):
    student, teacher = random_logits(6, 50, seed=1), random_logits(6, 50, seed=2)
    torch.testing.assert_close(divergence(student[2:4], teacher[2:4]), divergence(student, teacher)[2:4])


def test_gradient_sums_to_zero_over_the_vocabulary(loss, random_logits):
    _, gradient = _gradient(loss, random_logits(6, 50, seed=1), random_logits(6, 50, seed=2))
    assert gradient.abs().max() > 1e-3
    assert gradient.sum(-1).abs().max() < 1e-10 * gradient.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_160_apart_give_finite_values_and_gradients(loss, dtype):
    student = torch.tensor([[80.0, -80, 0, 0], [-80, 80, 0, 80], [0, 0, 0, 0]], dtype=dtype)
    teacher = torch.tensor([[-80.0, 80, 0, 0], [-80, 80, 80, -80], [80, -80, -80, -80]], dtype=dtype)
    nats, gradient = _gradient(loss, student, teacher)
    assert nats.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("impossible", [-math.inf, torch.finfo(torch.float32).min])
def test_an_entry_that_is_impossible_for_both_is_as_good_as_absent(loss, random_logits, impossible):
    student, teacher = random_logits(4, 9, seed=1), random_logits(4, 9, seed=2)
    expected_nats, expected_gradient = _gradient(loss, student, teacher)
    hole = torch.full((4, 1), impossible, dtype=torch.float64)
    nats, gradient = _gradient(loss, torch.cat([student, hole], -1), torch.cat([teacher, hole], -1))
    torch.testing.assert_close(nats, expected_nats)
    torch.testing.assert_close(gradient[:, :9], expected_gradient)
    assert (gradient[:, 9] == 0).all()


def test_entries_at_minus_infinity_give_finite_values_and_gradients(loss, random_logits):
    student, teacher = random_logits(4, 9, seed=1), random_logits(4, 9, seed=2)
    student[0, 3] = student[1, 4:] = teacher[1, 2] = teacher[2, 5] = student[2, 5] = -math.inf
    for dtype in (torch.float64, torch.float32):
        nats, gradient = _gradient(loss, student.to(dtype), teacher.to(dtype))
        assert nats.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient[student == -math.inf] == 0).all()


def test_an_entry_at_minus_infinity_for_one_of_them_adds_nothing_to_a_kl(random_logits):
    """By hand: student (1/2, 1/2, 0), teacher (1/4, 1/4, 1/2): two terms 1/4 log(1/2) are left."""
    student = torch.tensor([[0.0, 0.0, -math.inf]])
    teacher = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert make_loss("fkl")(student, teacher).item() == pytest.approx(0.5 * math.log(0.5))
    assert make_loss("rkl")(student, teacher).item() == pytest.approx(math.log(2))


def test_no_gradient_reaches_the_teacher(divergence, random_logits):
    student = random_logits(3, 7, seed=1).requires_grad_()
    teacher = random_logits(3, 7, seed=2).requires_grad_()
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_arithmetic(loss, random_logits, dtype):
    student, teacher = random_logits(4, 30, seed=1).to(dtype), random_logits(4, 30, seed=2).to(dtype)
    target = torch.arange(4)
    nats = loss(student, teacher, target)
    assert nats.dtype == torch.float32
    assert torch.equal(nats, loss(student.float(), teacher.float(), target))


def test_no_tokens_give_no_values(loss):
    student = torch.zeros(0, 7, requires_grad=True)
    nats = loss(student, torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))
    assert nats.shape == (0,)
    nats.sum().backward()
    assert student.grad.shape == (0, 7)


def test_a_missing_teacher_or_another_vocabulary_is_an_error(divergence):
    with pytest.raises(ValueError, match="teacher"):
        divergence(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="same shape"):
        divergence(torch.zeros(2, 5), torch.zeros(2, 6))
