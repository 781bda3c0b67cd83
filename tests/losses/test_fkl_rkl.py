import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0.217117), (0.0, 0.253702), (0.25, 0.244556)])
def test_value_by_hand_is_the_mix_of_the_two_directions(weight, expected):
    """p = (.4, .3, .15, .1, .05), q uniform: FKL .217117, RKL .253702."""
    teacher = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
    nats = make_loss("fkl_rkl", weight=weight)(torch.zeros(1, 5), teacher)
    assert nats.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_weight_outside_0_1_is_refused(weight):
    with pytest.raises(UserError, match=r"loss\.weight=.* \[0, 1\]"):
        make_loss("fkl_rkl", weight=weight)
