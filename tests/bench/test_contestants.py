"""Every contestant does the same task: values and gradients agree, in float64 where ours can."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdrun.bench import loss, objective
from kdrun.bench.contest import is_installed
from kdrun.bench.textbook import TEXTBOOK
from kdrun.losses import chunked_linear_loss, make_loss

BETA = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}


def gradient(total: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("name", list(TEXTBOOK))
@pytest.mark.parametrize("std", [1.0, 3.0])
def test_the_textbook_equals_ours_in_value_and_gradient(name: str, std: float) -> None:
    case = loss.LossCase(6, 301, std, 0.5, "cpu", 0, (name,), ())
    student_NV, teacher_NV = (logits.detach().double() for logits in case.build())
    student_NV.requires_grad_()
    ours, theirs = make_loss(name)(student_NV, teacher_NV), TEXTBOOK[name](student_NV, teacher_NV)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(ours.sum(), student_NV), gradient(theirs.sum(), student_NV))


def test_the_students_logits_are_the_teachers_plus_noise_of_the_named_share() -> None:
    student_NV, teacher_NV = loss.LossCase(64, 4096, 3.0, 0.5, "cpu", 0, (), ()).build()
    assert float(teacher_NV.std()) == pytest.approx(3, rel=0.02)
    assert float((student_NV - teacher_NV).detach().std()) == pytest.approx(1.5, rel=0.02)


def sides(tokens: int = 12) -> objective.Sides:
    return objective.ObjectiveCase(tokens, 101, 8, 16, "fp32", "cpu", 0, (), (), False).build()


class Products(TorchDispatchMode):
    """Counts what a work does: matrix products by the shape of their result, and all other operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "mm" in str(func):
            assert "out" in str(func)
            self.products.append(tuple(result.shape))
        elif not any(view in str(func) for view in ("aten.t.", "aten.permute", "aten.detach")):
            self.others.append(str(func))
        return result


def test_the_floor_is_four_products_into_memory_that_is_there_and_nothing_else() -> None:
    inputs = sides()
    work = objective.run_floor(inputs)
    with Products() as seen:
        work()
    assert sorted(seen.products) == sorted([(12, 101), (12, 101), (12, 8), (101, 8)])
    assert seen.others == []


@pytest.fixture
def gradients(monkeypatch):
    """The gradients that a contestant's work computes and throws away."""
    kept: list[tuple[torch.Tensor, ...]] = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **more: kept.append(real(*given, **more)) or kept[-1])

    def of(work) -> tuple[torch.Tensor, ...]:
        kept.clear()
        work()
        return kept[-1]

    return of


def reference(name: str, inputs: objective.Sides) -> tuple[torch.Tensor, ...]:
    """Gradients of the mean, in float64."""
    hidden_ND, weight_VD = (x.detach().double().requires_grad_() for x in inputs.watched)
    teacher = inputs.teacher_hidden_NE.double(), inputs.teacher_weight_VE.double()
    total = chunked_linear_loss(make_loss(name), hidden_ND, weight_VD, *teacher) / len(hidden_ND)
    return gradient(total, hidden_ND, weight_VD)


@pytest.mark.parametrize("name", list(TEXTBOOK))
def test_ours_and_the_plain_path_give_the_gradients_of_the_same_mean(name: str, gradients) -> None:
    inputs = sides()
    wanted = [g.float() for g in reference(name, inputs)]
    for start in (objective.run_ours, objective.run_plain):
        found = gradients(start(name, inputs))
        torch.testing.assert_close(list(found), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", list(BETA))
def test_liger_gives_the_gradients_of_the_same_mean(name: str, gradients) -> None:
    if not is_installed("liger_kernel"):
        pytest.skip("liger_kernel is not installed (make bench)")
    inputs = sides()
    wanted = [g.float() for g in reference(name, inputs)]
    found = gradients(objective.run_liger(BETA[name], False, inputs))
    torch.testing.assert_close(list(found), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", list(BETA))
def test_trl_gives_the_gradients_of_the_same_mean_and_of_the_same_sum(name: str, gradients) -> None:
    if not is_installed("trl"):
        pytest.skip("trl is not installed (make bench)")
    inputs = sides()
    wanted = [g.float() for g in reference(name, inputs)]
    torch.testing.assert_close(list(gradients(objective.run_trl(BETA[name], inputs))), wanted, rtol=1e-3, atol=1e-6)
    logits = loss.LossCase(6, 301, 1.0, 0.5, "cpu", 0, (name,), ()).build()
    (ours,), (theirs,) = gradients(loss.run_ours(name, logits)), gradients(loss.run_trl(BETA[name], logits))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
