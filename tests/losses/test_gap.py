import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss

pytestmark = pytest.mark.usefixtures("either_way")

TEACHER = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()  # against a uniform student: gaps .2, .1, .05, .1, .15


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, 0.6),
        ({"head_weight": 1.0, "tail_weight": 0.0}, 0.2),
        ({"head_weight": 0.0, "tail_weight": 1.0}, 0.4),
        ({"head_weight": 2.0, "tail_weight": 0.5, "mu": 0.72}, 0.75),
    ],
)
def test_value_by_hand(params, expected):
    assert make_loss("gap", **params)(torch.zeros(1, 5), TEACHER).item() == pytest.approx(expected)


def test_equal_weights_are_twice_the_total_variation_in_value_and_gradient(random_logits):
    student, teacher = random_logits(4, 30, seed=1).requires_grad_(), random_logits(4, 30, seed=2)
    gap, tvd = make_loss("gap")(student, teacher), make_loss("tvd")(student, teacher)
    torch.testing.assert_close(gap, 2 * tvd)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), student)[0] for x in (gap, 2 * tvd)))


@pytest.mark.parametrize("params", [{"head_weight": -1.0}, {"tail_weight": -0.1}, {"mu": 0.0}])
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(params))}="):
        make_loss("gap", **params)
