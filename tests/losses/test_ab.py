import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss


@pytest.mark.parametrize(("alpha", "beta", "same_as"), [(1.0, 0.0, "fkl"), (0.0, 1.0, "rkl")])
def test_the_corners_are_the_two_kl(random_logits, alpha, beta, same_as):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    torch.testing.assert_close(
        make_loss("ab", alpha=alpha, beta=beta)(student, teacher), make_loss(same_as)(student, teacher)
    )


def test_one_one_is_half_the_squared_distance(random_logits):
    """-(p q - p^2/2 - q^2/2) = (p - q)^2 / 2."""
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    expected = (teacher.softmax(-1) - student.softmax(-1)).square().sum(-1) / 2
    torch.testing.assert_close(make_loss("ab", alpha=1.0, beta=1.0)(student, teacher), expected)


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ((0.5, 0.0), (0.5, 3e-6)),
        ((2.0, 0.0), (2.0, -3e-6)),
        ((0.0, 0.5), (3e-6, 0.5)),
        ((0.5, -0.5), (0.5, -0.5 + 3e-6)),
        ((0.0, 0.0), (3e-6, 4e-6)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_meet_the_general_formula_beside_the_singular_lines(random_logits, line, near, dtype):
    student, teacher = (random_logits(4, 30, seed=seed, spread=1.0).to(dtype) for seed in (1, 2))
    on_the_line = make_loss("ab", alpha=line[0], beta=line[1])(student, teacher)
    beside = make_loss("ab", alpha=near[0], beta=near[1])(student, teacher)
    torch.testing.assert_close(beside, on_the_line, rtol=1e-3, atol=0)


def test_limit_by_hand_carries_one_over_alpha_squared():
    """alpha 2, beta 0, p = (1/2, 1/2), q = (1/4, 3/4): 1/4 sum [p^2 log(p^2/q^2) - p^2 + q^2]."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert make_loss("ab", alpha=2.0, beta=0.0)(student, teacher).item() == pytest.approx(0.0672103, abs=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "high"])
def test_a_parameter_that_is_no_finite_number_is_refused(value):
    with pytest.raises(UserError, match=r"loss\.beta="):
        make_loss("ab", beta=value)
