import json
import math

import pytest
import torch

from kdrun.losses import MatchedGradient, chunked_objective, make_loss
from kdrun.losses.buckets import BucketedMix, teacher_buckets


def gradient_of(loss, student, teacher):
    """Through the call, as a user takes it."""
    leaf = student.clone().requires_grad_()
    loss(leaf, teacher).sum().backward()
    return leaf.grad


def matched(loss, student, teacher):
    """The loss after a preview of these logits."""
    found = MatchedGradient(loss)
    found.preview(lambda: gradient_of(found, student, teacher))
    return found


def test_factor_of_one_token_by_hand():
    """p = (.8, .2), q = (.5, .5): |q - p| = .3 sqrt 2; m = .1 p + .9 q = (.53, .47), and JSD's gradient in the first
    logit is .9 * .5 * (log(.5/.53) - .5 log(.5/.53) - .5 log(.5/.47)) = -.0270325, in the second its opposite."""
    teacher, student = torch.tensor([[0.8, 0.2]]).double().log(), torch.zeros(1, 2).double()
    own = 0.9 * 0.25 * (math.log(0.5 / 0.53) - math.log(0.5 / 0.47))
    assert own == pytest.approx(-0.0270325, abs=1e-7)
    loss = matched(make_loss("jsd", beta=0.1), student, teacher)
    assert loss.factor == pytest.approx(0.3 / -own)
    torch.testing.assert_close(gradient_of(loss, student, teacher), torch.tensor([[-0.3, 0.3]]).double())


def test_norm_is_forward_kls_and_direction_and_value_are_the_losss_own(divergence, random_logits):
    student, teacher = random_logits(20, 30, seed=1), random_logits(20, 30, seed=2)
    forward, own = (gradient_of(x, student, teacher) for x in (make_loss("fkl"), divergence))
    loss = matched(divergence, student, teacher)
    found = gradient_of(loss, student, teacher)
    assert found.norm() == pytest.approx(float(forward.norm()), rel=1e-6)
    torch.testing.assert_close(found / found.norm(), own / own.norm(), rtol=1e-9, atol=1e-12)
    assert torch.equal(loss(student, teacher), divergence(student, teacher))
    with torch.no_grad():
        assert torch.equal(loss(student, teacher), divergence(student, teacher))


def test_autograd_through_the_definition_is_scaled_like_the_closed_form(random_logits):
    student, teacher = random_logits(5, 9, seed=1), random_logits(5, 9, seed=2)
    loss = matched(make_loss("jsd", beta=0.1), student, teacher)
    leaf = student.clone().requires_grad_()
    loss.from_log_probs(leaf.log_softmax(-1), teacher.log_softmax(-1), None).sum().backward()
    torch.testing.assert_close(leaf.grad, gradient_of(loss, student, teacher))


@pytest.mark.parametrize("hole", [False, True])
def test_forward_kl_itself_has_factor_1(hole, random_logits):
    student, teacher = random_logits(20, 30, seed=1), random_logits(20, 30, seed=2)
    if hole:
        teacher[:, 3] = student[:, 7] = -math.inf
    assert matched(make_loss("fkl"), student, teacher).factor == pytest.approx(1, abs=1e-12)


def test_equal_models_have_factor_1(divergence, random_logits):
    logits = random_logits(5, 9)
    loss = MatchedGradient(divergence)
    loss.preview(lambda: None)  # nothing was seen
    assert loss.factor == 1
    gradient = gradient_of(loss, logits, logits.clone())
    assert math.isfinite(loss.observe(0.0, 0.0)["grad_match"])
    assert gradient.abs().max() < 1e-7
    zero = make_loss("gap", head_weight=0.0, tail_weight=0.0)
    assert matched(zero, logits, random_logits(5, 9, seed=1)).factor == 1


def test_a_gradient_of_rounding_alone_is_not_blown_up(random_logits):
    """TAID at t = 0 has nothing to learn; in float32 it has rounding, 1e-7 of forward KL's norm."""
    student, teacher = random_logits(20, 500, seed=1).float(), random_logits(20, 500, seed=2).float()
    loss = matched(make_loss("taid", t_start=0.0), student, teacher)
    assert loss.factor == 1e5
    forward = gradient_of(make_loss("fkl"), student, teacher)
    assert gradient_of(loss, student, teacher).norm() < 0.02 * forward.norm()


@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_norms_match_at_the_losss_temperature_and_beside_the_cross_entropy(chunk_tokens, random_logits):
    """The head is the identity, so hidden states are logits and their gradient is the gradient in the logits."""
    student, teacher, target = random_logits(8, 12, seed=1), random_logits(8, 12, seed=2), torch.arange(8)

    def gradient(loss, kd_ratio):
        leaf = student.clone().requires_grad_()
        head = torch.eye(12).double()
        given = {"temperature": 2.0, "kd_ratio": kd_ratio, "chunk_tokens": chunk_tokens}
        chunked_objective(loss, leaf, head, teacher, head, target, **given).total.backward()
        return leaf.grad

    loss = MatchedGradient(make_loss("jsd", beta=0.1))
    loss.preview(lambda: gradient(loss, 1.0))
    forward = make_loss("fkl")
    assert gradient(loss, 1.0).norm() == pytest.approx(float(gradient(forward, 1.0).norm()), rel=1e-6)
    data = gradient(forward, 0.0)
    mixed = [gradient(x, 0.5) - 0.5 * data for x in (loss, forward)]
    assert mixed[0].norm() == pytest.approx(float(mixed[1].norm()), rel=1e-6)


def test_parts_of_a_step_on_two_ranks_give_the_factor_of_the_whole(random_logits):
    student, teacher = random_logits(6, 9, seed=1), random_logits(6, 9, seed=2)
    whole = matched(make_loss("rkl"), student, teacher)
    ranks = [MatchedGradient(make_loss("rkl")) for _ in range(2)]
    for loss, rows in zip(ranks, (slice(0, 4), slice(4, 6)), strict=True):
        gradient_of(loss, student[rows], teacher[rows])
    kept = []
    for loss in ranks:
        loss.reduce(lambda values: kept.append(values) or values)
    for loss in ranks:
        loss.reduce(lambda values: [a + b for a, b in zip(*kept, strict=True)])
        loss.observe(1.0, 0.0)
        assert loss.factor == pytest.approx(whole.factor, rel=1e-12)


def test_the_factor_follows_the_averages_of_both_sums_of_squares(random_logits):
    """Two steps after the preview of the first: each weighs half of what the steps after it leave."""
    pairs = [(random_logits(6, 9, seed=k), random_logits(6, 9, seed=k + 9, spread=k + 1.0)) for k in range(3)]
    squares = [[gradient_of(make_loss(n), *pair).pow(2).sum().item() for pair in pairs] for n in ("rkl", "fkl")]
    loss = matched(make_loss("rkl"), *pairs[0])
    factors = []
    for k, pair in enumerate(pairs):
        gradient_of(loss, *pair)
        values = loss.observe(1.0, 0.0)
        factors.append(values["grad_factor"])
        own, forward = squares[0][k], squares[1][k]
        assert values["grad_match"] == pytest.approx(factors[-1] * math.sqrt(own / forward))
    own, forward = (0.125 * s[0] + 0.25 * s[0] + 0.5 * s[1] for s in squares)
    assert factors[0] == factors[1] == pytest.approx(math.sqrt(squares[1][0] / squares[0][0]))
    assert factors[2] == pytest.approx(math.sqrt(forward / own))


def test_free_logits_move_as_fast_as_with_forward_kl(random_logits):
    """30 steps of SGD: the matched norm stays within 20% of forward KL's on the same logits (0.96 to 1.08)."""
    student, teacher = random_logits(50, 20, seed=1).requires_grad_(), random_logits(50, 20, seed=2)
    loss = matched(make_loss("jsd", beta=0.1), student.detach(), teacher)
    optimizer = torch.optim.SGD([student], lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        loss(student, teacher).sum().backward()
        assert loss.observe(1.0, 0.0)["grad_match"] == pytest.approx(1, abs=0.2)
        optimizer.step()
    assert loss.factor > 5


def test_a_loss_with_a_schedule_keeps_it_and_its_state_comes_back_exactly(random_logits):
    alone, first = make_loss("taid"), MatchedGradient(make_loss("taid"))
    for step in range(4):
        gradient_of(first, random_logits(6, 9, seed=step), random_logits(6, 9, seed=9))
        values = first.observe(3.0 - step, step / 10)
        assert alone.observe(3.0 - step, step / 10).items() <= values.items()
    second = MatchedGradient(make_loss("taid"))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.preview(lambda: pytest.fail("a resumed loss has seen earlier steps"))
    assert (second.factor, second.state_dict()) == (first.factor, first.state_dict())
    with pytest.raises(ValueError, match="keys"):
        second.load_state_dict({"own_squares": 1.0, "forward_squares": 1.0})


def test_what_has_no_forward_kl_to_match_is_refused(random_logits):
    with pytest.raises(ValueError, match="sft is no divergence"):
        MatchedGradient(make_loss("sft"))
    with pytest.raises(ValueError, match="only f-divergences"):
        BucketedMix(MatchedGradient(make_loss("fkl")), *teacher_buckets(random_logits(3, 9), 4), kd_ratio=1.0)
