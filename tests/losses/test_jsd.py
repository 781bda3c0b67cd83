import math

import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss


def test_value_by_hand_for_two_certain_opposites_is_log_2():
    teacher, student = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    assert make_loss("jsd")(student, teacher).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("beta", "same_as"), [(0.0, "fkl"), (1.0, "rkl")])
def test_the_ends_of_beta_are_the_two_kl(random_logits, beta, same_as):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    assert torch.equal(make_loss("jsd", beta=beta)(student, teacher), make_loss(same_as)(student, teacher))


@pytest.mark.parametrize(("beta", "same_as"), [(1e-5, "fkl"), (1 - 1e-5, "rkl")])
def test_near_the_ends_the_value_over_beta_tends_to_the_kl(random_logits, beta, same_as):
    student, teacher = random_logits(4, 30, seed=1, spread=1.0), random_logits(4, 30, seed=2, spread=1.0)
    near = make_loss("jsd", beta=beta)(student, teacher) / min(beta, 1 - beta)
    torch.testing.assert_close(near, make_loss(same_as)(student, teacher), rtol=1e-3, atol=0)


def test_beta_is_the_weight_of_the_teacher(random_logits):
    """Against the definition with probabilities, in float64."""
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    q, p = student.softmax(-1), teacher.softmax(-1)
    m = 0.1 * p + 0.9 * q
    expected = 0.1 * (p * (p / m).log()).sum(-1) + 0.9 * (q * (q / m).log()).sum(-1)
    torch.testing.assert_close(make_loss("jsd", beta=0.1)(student, teacher), expected)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_gradient_in_closed_form(random_logits, beta):
    """(1 - beta) q (log(q/m) - KL(q, m))."""
    student, teacher = random_logits(4, 30, seed=1).requires_grad_(), random_logits(4, 30, seed=2)
    make_loss("jsd", beta=beta)(student, teacher).sum().backward()
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    log_ratio = (q / (beta * p + (1 - beta) * q)).log()
    expected = (1 - beta) * q * (log_ratio - (q * log_ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("beta", [-0.01, 1.01])
def test_beta_outside_0_1_is_refused(beta):
    with pytest.raises(UserError, match=r"loss\.beta=.* \[0, 1\]"):
        make_loss("jsd", beta=beta)
