import pytest
import torch

from kdrun.losses import make_loss


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 0.5, 1.5])
def test_value_is_the_definition_with_probabilities(random_logits, alpha):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    overlap = (teacher.softmax(-1) ** alpha * student.softmax(-1) ** (1 - alpha)).sum(-1)
    expected = (1 - overlap) / (alpha * (1 - alpha))
    torch.testing.assert_close(make_loss("alpha", alpha=alpha)(student, teacher), expected)


def test_one_half_by_hand_is_four_times_squared_hellinger():
    """p = (1/2, 1/2), q = (.02, .98): sum sqrt(p q) = .1 + .7."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.02, 0.98]]).log()
    assert make_loss("alpha", alpha=0.5)(student, teacher).item() == pytest.approx(4 * (1 - 0.8), abs=1e-6)


@pytest.mark.parametrize(("alpha", "same_as"), [(1.0, "fkl"), (1 - 1e-5, "fkl"), (0.0, "rkl"), (1e-5, "rkl")])
def test_the_ends_are_the_two_kl(random_logits, alpha, same_as):
    student, teacher = (random_logits(4, 30, seed=seed).float() for seed in (1, 2))
    expected = make_loss(same_as)(student, teacher)
    torch.testing.assert_close(make_loss("alpha", alpha=alpha)(student, teacher), expected, rtol=1e-4, atol=0)
