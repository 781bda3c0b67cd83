import math

import pytest
import torch

from kdrun.losses import make_loss
from kdrun.losses.sft import cross_entropy_gradient

STUDENT = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log()


def test_value_is_minus_log_probability_of_the_target():
    nats = make_loss("sft")(STUDENT, target_N=torch.tensor([1, 2]))
    torch.testing.assert_close(nats, torch.tensor([math.log(4), -math.log(0.7)]))


def test_value_is_that_of_torch_cross_entropy(random_logits):
    student, target = random_logits(9, 40), torch.arange(9)
    expected = torch.nn.functional.cross_entropy(student, target, reduction="none")
    torch.testing.assert_close(make_loss("sft")(student, target_N=target), expected)


def test_gradient_is_q_minus_onehot():
    expected = torch.tensor([[0.5, -0.75, 0.25], [0.1, 0.2, -0.3]])
    torch.testing.assert_close(cross_entropy_gradient(STUDENT, torch.tensor([1, 2])), expected)


def test_sft_needs_targets_and_no_teacher():
    assert not make_loss("sft").needs_teacher
    with pytest.raises(ValueError, match="target_N is missing"):
        make_loss("sft")(STUDENT)
