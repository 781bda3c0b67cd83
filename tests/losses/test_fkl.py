import math

import pytest
import torch

from kdrun.losses import make_loss


def test_value_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert make_loss("fkl")(student, teacher).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_gradient_is_q_minus_p(random_logits):
    student, teacher = random_logits(4, 30, seed=1).requires_grad_(), random_logits(4, 30, seed=2)
    make_loss("fkl")(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - teacher.softmax(-1))


def test_value_is_that_of_torch_distributions(random_logits):
    student, teacher = (torch.distributions.Categorical(logits=random_logits(4, 30, seed=seed)) for seed in (1, 2))
    expected = torch.distributions.kl_divergence(teacher, student)
    torch.testing.assert_close(make_loss("fkl")(student.logits, teacher.logits), expected)
