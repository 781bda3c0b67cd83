import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_value_is_the_definition_with_probabilities(random_logits, alpha):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    q, p = student.softmax(-1), teacher.softmax(-1)
    expected = (q * (q / (alpha * q + (1 - alpha) * p)).log()).sum(-1)
    torch.testing.assert_close(make_loss("srkl", alpha=alpha)(student, teacher), expected)


def test_alpha_zero_is_reverse_kl(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    torch.testing.assert_close(make_loss("srkl", alpha=0.0)(student, teacher), make_loss("rkl")(student, teacher))


def test_one_half_is_half_of_a_symmetric_pair(random_logits):
    """The mixture is the same at 1/2, so the mean of skl and srkl is jsd at 1/2."""
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    pair = make_loss("skl", alpha=0.5)(student, teacher) + make_loss("srkl", alpha=0.5)(student, teacher)
    torch.testing.assert_close(pair / 2, make_loss("jsd", beta=0.5)(student, teacher))


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(UserError, match=r"loss\.alpha=.* \[0, 1\)"):
        make_loss("srkl", alpha=alpha)
