import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_value_is_the_definition_with_probabilities(random_logits, alpha):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    q, p = student.softmax(-1), teacher.softmax(-1)
    expected = (p * (p / (alpha * p + (1 - alpha) * q)).log()).sum(-1)
    torch.testing.assert_close(make_loss("skl", alpha=alpha)(student, teacher), expected)


def test_alpha_zero_is_forward_kl(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    torch.testing.assert_close(make_loss("skl", alpha=0.0)(student, teacher), make_loss("fkl")(student, teacher))


def test_value_stays_below_minus_log_alpha():
    """Certain opposites: KL(p, alpha p + ...) = -log alpha, where forward KL is 160 nats."""
    nats = make_loss("skl", alpha=0.1)(torch.tensor([[80.0, -80.0]]), torch.tensor([[-80.0, 80.0]]))
    assert nats.item() == pytest.approx(2.302585)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(UserError, match=r"loss\.alpha=.* \[0, 1\)"):
        make_loss("skl", alpha=alpha)
