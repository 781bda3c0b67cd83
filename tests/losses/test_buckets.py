"""Divergences on the likeliest entries and a rest: by hand, as bounds, with gradients, and what is refused."""

import itertools
import math

import pytest
import torch

from kdrun.losses import LOSSES, chunked_objective, make_loss
from kdrun.losses.buckets import BucketedMix, bucketed_gradient, bucketed_nats, check_served, teacher_buckets
from kdrun.losses.interface import log_softmax

SERVED = ["fkl", "rkl", "fkl_rkl", "jsd", "tvd", "skl", "srkl", "alpha"]
REFUSED = ["akl", "ab", "taid", "amid", "gap", "cald", "minillm"]


def logits(rows: int, vocabulary: int, seed: int, *, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)


def test_every_loss_is_either_served_or_refused() -> None:
    assert sorted([*SERVED, *REFUSED, "sft"]) == sorted(LOSSES)
    for name in SERVED:
        check_served(make_loss(name))
    for name in REFUSED:
        with pytest.raises(ValueError, match="only f-divergences"):
            check_served(make_loss(name))
    check_served(make_loss("sft"))


def test_two_buckets_of_three_entries_worked_by_hand() -> None:
    """p = (.5, .3, .2), q = (.25, .25, .5), K = 1: the buckets are (.5, .5) and (.25, .75)."""
    p, q = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.25, 0.25, 0.5]]).double()
    ids, log_p = teacher_buckets(p.log(), 1)
    assert ids.tolist() == [[0]]
    assert log_p.exp().tolist() == [pytest.approx([0.5, 0.5])]
    forward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(bucketed_nats(make_loss("fkl"), q.log(), ids, log_p)) == pytest.approx(forward)
    assert float(bucketed_nats(make_loss("tvd"), q.log(), ids, log_p)) == pytest.approx(0.25)
    nats, gradient = bucketed_gradient(make_loss("fkl"), q.log(), ids, log_p)
    assert float(nats) == pytest.approx(forward)
    # Q - P of the buckets: -.25 to the kept entry; +.25 to the rest, shared as .25 to .5
    assert gradient.tolist() == [pytest.approx([-0.25, 0.25 / 3, 0.5 / 3])]


@pytest.mark.parametrize("name", SERVED)
def test_all_entries_kept_is_the_exact_loss_and_fewer_a_lower_bound(name: str) -> None:
    loss, student, teacher = make_loss(name), logits(6, 11, 0), logits(6, 11, 1)
    exact = loss(student, teacher)
    values = []
    for topk in (1, 2, 5, 10, 11):
        ids, log_p = teacher_buckets(teacher, topk)
        assert log_p.shape == (6, min(topk + 1, 11))
        values.append(bucketed_nats(loss, log_softmax(student), ids, log_p))
    assert torch.allclose(values[-1], exact, rtol=1e-12)
    assert torch.allclose(values[-2], exact, rtol=1e-12), "a rest of one entry is that entry"
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-12).all()
    assert (values[0] >= -1e-12).all()


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("topk", [1, 4, 9])
def test_the_gradient_is_that_of_autograd(name: str, topk: int) -> None:
    student, loss = logits(5, 9, 2).requires_grad_(), make_loss(name)
    ids, log_p = teacher_buckets(logits(5, 9, 3), topk)
    bucketed_nats(loss, log_softmax(student), ids, log_p).sum().backward()
    _, gradient = bucketed_gradient(loss, log_softmax(student.detach()), ids, log_p)
    assert student.grad is not None
    assert torch.allclose(gradient, student.grad, rtol=1e-9, atol=1e-12)


def test_a_student_certain_of_a_kept_entry_has_a_finite_loss_and_gradient() -> None:
    """The rest's mass is 1e-30 of it: 1 - sum(q) would be 0 and its logarithm -inf."""
    student = torch.tensor([[70.0, 0.0, -1.0]])
    ids, log_p = teacher_buckets(torch.tensor([[1.0, 0.5, 0.0]]), 1)
    nats, gradient = bucketed_gradient(make_loss("fkl"), log_softmax(student), ids, log_p)
    assert 20 < float(nats) < 60
    assert torch.isfinite(gradient).all()
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kd_ratio", [0.3, 1.0])
def test_the_objective_of_hidden_states_mixes_in_the_cross_entropy_chunk_by_chunk(kd_ratio: float) -> None:
    hidden = logits(37, 6, 4, scale=1.0).requires_grad_()
    weight = logits(12, 6, 5, scale=1.0).requires_grad_()
    target = torch.arange(37) % 12
    ids, log_p = teacher_buckets(logits(37, 12, 6), 3)
    mix = BucketedMix(make_loss("jsd"), ids, log_p, kd_ratio=kd_ratio)
    sums = chunked_objective(mix, hidden, weight, target_N=target, chunk_tokens=16)
    sums.total.backward()
    found = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    log_q = log_softmax(hidden @ weight.T)
    divergence = bucketed_nats(make_loss("jsd"), log_q, ids, log_p).sum()
    cross_entropy = torch.nn.functional.nll_loss(log_q, target, reduction="sum")
    expected = kd_ratio * divergence + (1 - kd_ratio) * cross_entropy
    expected.backward()
    assert float(sums.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert float(mix.divergence_sum) == pytest.approx(float(divergence.detach()), rel=1e-12)
    assert float(sums.cross_entropy) == pytest.approx(float(cross_entropy.detach()), rel=1e-12)
    for ours, theirs in zip(found, (hidden.grad, weight.grad), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
