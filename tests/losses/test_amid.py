import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss
from kdrun.losses.amid import assistant


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.0, 0.5, 3.0])
def test_assistant_is_the_normalised_alpha_mixture(random_logits, alpha):
    q, p, k = random_logits(4, 30, seed=1).softmax(-1), random_logits(4, 30, seed=2).softmax(-1), (1 - alpha) / 2
    mixture = (0.3 * p**k + 0.7 * q**k) ** (1 / k)
    expected = mixture / mixture.sum(-1, keepdim=True)
    torch.testing.assert_close(assistant(q.log(), p.log(), alpha=alpha, lam=0.3).exp(), expected)


def test_assistant_at_alpha_3_is_the_harmonic_mean_not_the_geometric():
    """k = -1, lam 1/2, p = (1/2, 1/2), q = (1/4, 3/4): 1/(1/2 (2 + 4)) to 1/(1/2 (2 + 4/3)), so 5/14 to 9/14."""
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = torch.tensor([[5 / 14, 9 / 14]])
    torch.testing.assert_close(assistant(q.log(), p.log(), alpha=3.0, lam=0.5).exp(), expected)


@pytest.mark.parametrize("alpha", [1 - 1e-5, 1 + 1e-5])
def test_assistant_is_continuous_at_the_geometric_mean(random_logits, alpha):
    log_q, log_p = (random_logits(4, 30, seed=seed).float().log_softmax(-1) for seed in (1, 2))
    geometric = assistant(log_q, log_p, alpha=1.0, lam=0.3)
    torch.testing.assert_close(assistant(log_q, log_p, alpha=alpha, lam=0.3), geometric, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0, 3.0])
def test_lam_zero_is_the_student_and_lam_one_the_teacher(random_logits, alpha):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    fkl, rkl = make_loss("fkl")(student, teacher), make_loss("rkl")(student, teacher)

    def amid(lam: float, order: str) -> torch.Tensor:
        return make_loss("amid", alpha=alpha, lam=lam, order=order)(student, teacher)

    torch.testing.assert_close(amid(0.0, "pr"), fkl)
    torch.testing.assert_close(amid(1.0, "qr"), rkl)
    assert amid(1.0, "pr").abs().max() < 1e-12
    assert amid(0.0, "qr").abs().max() < 1e-12


def test_alpha_minus_one_is_the_skewed_divergences(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    skl, srkl = make_loss("skl", alpha=0.1)(student, teacher), make_loss("srkl", alpha=0.1)(student, teacher)
    torch.testing.assert_close(make_loss("amid", alpha=-1.0, lam=0.1, order="pr")(student, teacher), skl)
    torch.testing.assert_close(make_loss("amid", alpha=-1.0, lam=0.9, order="qr")(student, teacher), srkl)


def test_base_rkl_is_base_fkl_of_the_swapped_order(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    torch.testing.assert_close(
        make_loss("amid", base="rkl", order="pr")(student, teacher),
        make_loss("amid", base="fkl", order="rp")(student, teacher),
    )


def test_base_ab_at_lam_zero_is_ab_at_its_defaults(random_logits):
    student, teacher = random_logits(4, 30, seed=1), random_logits(4, 30, seed=2)
    torch.testing.assert_close(
        make_loss("amid", base="ab", lam=0.0)(student, teacher), make_loss("ab")(student, teacher)
    )


@pytest.mark.parametrize("params", [{"lam": 1.5}, {"base": "jsd"}, {"order": "pq"}, {"alpha": float("inf")}])
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(params))}="):
        make_loss("amid", **params)


@pytest.mark.parametrize("order", ["pr", "qr", "rp", "rq"])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_both_ends_of_lam_can_be_trained_with(random_logits, lam, order):
    """At lam = 1 order `pr` compares the teacher with itself: 0 with a gradient of 0, and no graph was made."""
    student, teacher = random_logits(4, 30, seed=1).requires_grad_(), random_logits(4, 30, seed=2)
    nats_N = make_loss("amid", lam=lam, order=order)(student, teacher)
    nats_N.sum().backward()
    same = {"pr", "rp"} if lam == 1 else {"qr", "rq"}
    assert (student.grad.abs().max() > 1e-3) == (order not in same)
    assert (nats_N.abs().max() > 1e-3) == (order not in same)
