"""Log-probabilities of written tokens, and tokens that count differently in the chunked objective."""

import pytest
import torch

from kdrun.losses import LOSSES, TokenWeights, chunked_objective, make_loss
from kdrun.losses.linear_head import LinearHead
from kdrun.losses.written import target_log_probs

N, V, D, E = 11, 23, 5, 6
CHUNKS = [None, 1, 4, 11, 100]


@pytest.fixture
def inputs(random_logits):
    """Hidden states, weight and bias of the student (leaves), the same of the teacher, and targets."""
    shapes = [(N, D), (V, D), (V,), (N, E), (V, E), (V,)]
    tensors = [random_logits(*shape, seed=seed, spread=1.0) for seed, shape in enumerate(shapes)]
    target = torch.randint(V, (N,), generator=torch.Generator().manual_seed(9))
    return [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3:], target


def logits_of(tensors, *, scale, softcap):
    hidden, weight, bias = tensors
    logits = scale * (hidden @ weight.T + bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def chunked(loss, inputs, **options):
    (hidden, weight, bias), (teacher_hidden, teacher_weight, teacher_bias), target = inputs
    biases = {"student_bias_V": bias, "teacher_bias_V": teacher_bias}
    return chunked_objective(loss, hidden, weight, teacher_hidden, teacher_weight, target, **biases, **options)


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, 3.0)])
@pytest.mark.parametrize("chunk", CHUNKS[1:])
def test_target_log_probs_are_those_of_the_whole_log_softmax(inputs, scale, softcap, chunk):
    tensors, _, target = inputs
    expected = logits_of(tensors, scale=scale, softcap=softcap).log_softmax(-1)[range(N), target]
    head = LinearHead(tensors[1], tensors[2], scale, softcap)
    found = target_log_probs(tensors[0], head, target, chunk_tokens=chunk)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    halved = target_log_probs(tensors[0].bfloat16(), head, target, chunk_tokens=chunk)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved.double(), expected.detach(), rtol=0.05, atol=0.05)
    assert target_log_probs(tensors[0][:0], head, target[:0], chunk_tokens=chunk).shape == (0,)


@pytest.mark.parametrize("own_cross_entropy", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "head", [{"scale": 1.0, "softcap": None}, {"scale": 0.5, "softcap": 3.0}], ids=["plain", "softcap"]
)
def test_weighted_tokens_give_the_value_and_gradient_of_the_weighted_sum(inputs, head, chunk, own_cross_entropy):
    loss, kd_ratio, temperature = make_loss("rkl"), 0.7, 2.0
    own_N, other_N = torch.randn(2, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights = TokenWeights(own_N, other_N if own_cross_entropy else None)
    options = {f"{side}_{key}": value for side in ("student", "teacher") for key, value in head.items()}
    sums = chunked(
        loss, inputs, kd_ratio=kd_ratio, temperature=temperature, weights=weights, chunk_tokens=chunk, **options
    )
    student, teacher = (logits_of(tensors, **head) for tensors in inputs[:2])
    nats = loss(student / temperature, teacher / temperature)
    cross_entropy = torch.nn.functional.cross_entropy(student, inputs[2], reduction="none")
    expected = kd_ratio * temperature**2 * (own_N * nats).sum()
    expected = expected + (other_N * cross_entropy if own_cross_entropy else (1 - kd_ratio) * cross_entropy).sum()
    torch.testing.assert_close(sums.total, expected)
    for found, by_hand in zip(*(torch.autograd.grad(x, inputs[0]) for x in (sums.total, expected)), strict=True):
        torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(sums.divergence, nats.sum().detach(), msg="logged without weights")
    torch.testing.assert_close(sums.cross_entropy, cross_entropy.sum().detach())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"sft"}))
def test_weights_of_one_change_no_bit(inputs, name):
    found = []
    for weights in (None, TokenWeights(torch.ones(N, dtype=torch.float64))):
        total = chunked(make_loss(name), inputs, kd_ratio=0.7, weights=weights, chunk_tokens=4).total
        found.append([total.detach(), *torch.autograd.grad(total, inputs[0])])
    assert all(torch.equal(plain, weighed) for plain, weighed in zip(*found, strict=True))


def test_weights_of_another_number_or_without_targets_are_refused(inputs):
    ones = torch.ones(N, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weights have shape \[10\], expected \[11\]"):
        chunked(make_loss("rkl"), inputs, weights=TokenWeights(ones[:10]))
    without = (*inputs[:2], None)
    with pytest.raises(ValueError, match="target_N is missing"):
        chunked(make_loss("rkl"), without, weights=TokenWeights(ones, ones))
    chunked(make_loss("rkl"), without, weights=TokenWeights(ones))
