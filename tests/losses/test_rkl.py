import math

import pytest
import torch

from kdrun.losses import make_loss


def test_value_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): 1/4 log 1/2 + 3/4 log 3/2."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert make_loss("rkl")(student, teacher).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_gradient_is_q_times_centred_log_ratio(random_logits):
    student, teacher = random_logits(4, 30, seed=1).requires_grad_(), random_logits(4, 30, seed=2)
    nats = make_loss("rkl")(student, teacher)
    nats.sum().backward()
    log_q, log_p = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    torch.testing.assert_close(student.grad, log_q.exp() * (log_q - log_p - nats.detach()[:, None]))


def test_swapping_the_models_gives_forward_kl(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    torch.testing.assert_close(make_loss("rkl")(student, teacher), make_loss("fkl")(teacher, student))
