import math

import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss


def test_value_is_kl_of_the_interpolated_target(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    target = (0.6 * student + 0.4 * teacher).log_softmax(-1)
    expected = (target.exp() * (target - student.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(make_loss("taid")(student, teacher), expected)


def test_gradient_is_q_minus_target(random_logits):
    student, teacher = random_logits(4, 30, seed=1).requires_grad_(), random_logits(4, 30, seed=2)
    make_loss("taid")(student, teacher).sum().backward()
    target = (0.6 * student + 0.4 * teacher).softmax(-1).detach()
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - target)


def test_t_zero_has_nothing_to_learn_and_t_one_is_forward_kl(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    assert make_loss("taid", t_start=0.0)(student, teacher).abs().max() < 1e-12
    torch.testing.assert_close(make_loss("taid", t_start=1.0)(student, teacher), make_loss("fkl")(student, teacher))


def test_t_by_hand():
    loss = make_loss("taid", t_start=0.4, t_end=1.0, alpha=0.1, beta=0.9)
    assert loss.observe(2.0, 0.0) == {"t": 0.4, "momentum": 0.0}  # the first loss only initialises
    # rel = (2 - 1) / 2 = .5, m = .05, delta = .1 sigmoid(.05) .6 = .0307498, target .4 + .6 * .01 = .406
    assert loss.observe(1.0, 0.01) == pytest.approx({"t": 0.43074985, "momentum": 0.05})
    # rel = -1, m = -.055, delta = .1 sigmoid(-.055) .56925 = .027680, target .7 wins
    assert loss.observe(2.0, 0.5) == pytest.approx({"t": 0.7, "momentum": -0.055})
    assert loss.observe(2.0, 1.0)["t"] == 1.0


def test_t_never_passes_t_end_and_never_falls():
    loss, last = make_loss("taid", t_end=0.6, alpha=0.5), 0.0
    for step in range(50):
        t = loss.observe(1.0 + (step % 3), step / 50)["t"]
        assert last <= t <= 0.6
        last = t
    assert last == 0.6


def test_evaluation_does_not_move_t(random_logits):
    loss = make_loss("taid")
    loss(random_logits(2, 5), random_logits(2, 5, seed=1))
    assert loss.state_dict() == {"t": 0.4, "momentum": 0.0, "previous_nats": None}


def test_a_loaded_state_goes_on_exactly():
    first, second = make_loss("taid"), make_loss("taid")
    for step in range(3):
        first.observe(3.0 - step, step / 10)
    second.load_state_dict(first.state_dict())
    assert second.observe(0.5, 0.3) == first.observe(0.5, 0.3)
    with pytest.raises(ValueError, match="keys"):
        second.load_state_dict({"t": 0.5})


def test_a_loss_that_jumps_up_from_nearly_zero_does_not_overflow():
    loss = make_loss("taid")
    loss.observe(1e-300, 0.0)
    assert math.isfinite(loss.observe(1.0, 0.0)["t"])


@pytest.mark.parametrize("params", [{"t_start": 1.2}, {"t_start": 0.8, "t_end": 0.5}, {"alpha": -1.0}, {"beta": 1.0}])
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(params))}="):
        make_loss("taid", **params)
