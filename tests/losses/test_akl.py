import pytest
import torch

from kdrun.errors import UserError
from kdrun.losses import make_loss
from kdrun.losses.fkl import kl
from kdrun.losses.head import head_share

pytestmark = pytest.mark.usefixtures("either_way")

# The two examples of the protocol, worked by hand. First: q uniform.
FIRST_P = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]])
SECOND_P, SECOND_Q = torch.tensor([[0.6, 0.2, 0.1, 0.05, 0.05]]), torch.tensor([[0.2, 0.3, 0.2, 0.2, 0.1]])


@pytest.mark.parametrize(("head", "expected"), [("code", 0.241507), ("paper", 0.235409), ("pointwise", 0.253702)])
def test_first_example_by_hand(head, expected):
    nats = make_loss("akl", mu=0.5, head=head)(torch.zeros(1, 5), FIRST_P.log())
    assert nats.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("head", ["code", "paper", "pointwise"])
def test_second_example_by_hand_whatever_the_order_of_the_vocabulary(head):
    loss = make_loss("akl", head=head)
    assert loss(SECOND_Q.log(), SECOND_P.log()).item() == pytest.approx(0.395954, abs=1e-6)
    assert loss(SECOND_Q.flip(-1).log(), SECOND_P.flip(-1).log()).item() == pytest.approx(0.395954, abs=1e-6)


def test_reversed_swaps_the_weights():
    """First example, code: weights 1/3, 2/3 become 2/3, 1/3."""
    nats = make_loss("akl", reversed=True)(torch.zeros(1, 5), FIRST_P.log())
    assert nats.item() == pytest.approx(2 / 3 * 0.217117 + 1 / 3 * 0.253702, abs=1e-6)


@pytest.mark.parametrize(
    ("head", "mu", "expected"),
    [
        ("code", 0.5, [1, 0, 0, 0, 0]),
        ("code", 0.1, [1, 0, 0, 0, 0]),  # the top entry is always head
        ("code", 0.72, [1, 1, 0, 0, 0]),
        ("paper", 0.5, [1, 1, 0, 0, 0]),
        ("paper", 0.1, [1, 0, 0, 0, 0]),
        ("paper", 0.999, [1, 1, 1, 1, 1]),
        ("pointwise", 0.12, [1, 1, 1, 0, 0]),
        ("pointwise", 0.5, [0, 0, 0, 0, 0]),
    ],
)
def test_head_by_hand(head, mu, expected):
    assert head_share(FIRST_P, mu=mu, head=head).tolist() == [expected]


@pytest.mark.parametrize("head", ["code", "paper"])
def test_a_prefix_whose_mass_is_exactly_mu_is_the_head(head):
    """Binary fractions, so that the sum is exact in floating point."""
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    assert head_share(p, mu=0.75, head=head).tolist() == [[1, 1, 0, 0]]


def test_places_in_the_head_are_shared_among_ties_at_the_border():
    """Sorted: .4, .15 x 4. mu = .6: one of the four (code), or two (paper), would be head; which one is chance."""
    p = torch.tensor([[0.15, 0.4, 0.15, 0.15, 0.15]])
    assert head_share(p, mu=0.6, head="code").tolist() == [[0.25, 1, 0.25, 0.25, 0.25]]
    assert head_share(p, mu=0.6, head="paper").tolist() == [[0.5, 1, 0.5, 0.5, 0.5]]


def test_shared_ties_are_the_mean_over_all_orders_of_a_sort():
    """Gaps by explicit stable sort of every rotation of the tied entries, against one call."""
    p, q = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]), torch.tensor([0.1, 0.1, 0.3, 0.45, 0.05])
    gaps = []
    for shift in range(4):
        rotated = torch.cat([q[:1], q[1:].roll(shift)])
        gaps.append((p - rotated).abs()[p.cumsum(0) <= 0.6].sum().item())
    shares = head_share(p[None], mu=0.6)
    assert (shares[0] * (p - q).abs()).sum().item() == pytest.approx(sum(gaps) / 4)


def test_gradient_is_that_of_the_mix_with_constant_weights(random_logits):
    loss, student, teacher = (
        make_loss("akl"),
        random_logits(6, 30, seed=1).requires_grad_(),
        random_logits(6, 30, seed=2),
    )
    nats = loss(student, teacher)
    nats.sum().backward()
    log_q, log_p = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    q, p, rkl = log_q.exp(), log_p.exp(), kl(log_q, log_p)[:, None]
    a = loss.forward_weight(log_q, log_p)[:, None]
    assert ((a > 0.05) & (a < 0.95)).all()
    torch.testing.assert_close(student.grad, a * (q - p) + (1 - a) * q * (log_q - log_p - rkl))


@pytest.mark.parametrize("head", ["code", "paper", "pointwise"])
def test_equal_models_give_weight_one_half_and_never_nan(head):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = make_loss("akl", head=head)
    nats = loss(logits, logits.detach())
    nats.sum().backward()
    assert nats.tolist() == [0, 0, 0]
    assert logits.grad.abs().max() < 1e-7
    log_q = logits.detach().log_softmax(-1)
    assert loss.forward_weight(log_q, log_q).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("params", [{"mu": 0.0}, {"mu": 1.0}, {"mu": "0.5"}, {"head": "text"}, {"reversed": 1}])
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(params))}="):
        make_loss("akl", **params)
