"""MiniLLM's policy gradient against a model of two tokens, whose texts can all be enumerated.

A model is a table: logits [S, V] of the next token after each of S prefixes. Hidden states are one-hot prefixes, so the
head is the table, and its gradient is that of every logit. With an end, token 0 ends a text: 0, 10, 110, 111; without,
the texts are the eight strings of three.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdrun.errors import UserError
from kdrun.losses import WrittenText, chunked_objective, make_loss
from kdrun.losses.linear_head import LinearHead
from kdrun.losses.minillm import Minillm, importance
from kdrun.losses.rkl import Rkl
from kdrun.losses.written import target_log_probs

LONGEST = 3
PREFIXES = [prefix for length in range(LONGEST) for prefix in itertools.product((0, 1), repeat=length)]
STATES = {prefix: state for state, prefix in enumerate(PREFIXES)}
UNBIASED = {"length_norm": False, "ratio_clip": 1e9}
Text = tuple[int, ...]


def tables(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher, float64 [S, V]."""
    random = torch.Generator().manual_seed(seed)
    student_SV, teacher_SV = 1.5 * torch.randn(2, len(PREFIXES), 2, generator=random, dtype=torch.float64)
    return student_SV, teacher_SV


def texts_of(*, end: bool, longest: int = LONGEST) -> list[Text]:
    every = itertools.product((0, 1), repeat=longest)
    return sorted({text[: text.index(0) + 1] if end and 0 in text else text for text in every})


def log_prob(table_SV: Tensor, text: Text) -> Tensor:
    log_SV = table_SV.log_softmax(-1)
    return torch.stack([log_SV[STATES[text[:t]], token] for t, token in enumerate(text)]).sum()


def exact_gradient(student_SV: Tensor, teacher_SV: Tensor, texts: Sequence[Text]) -> Tensor:
    """Of the sum over all texts of q log(q / p), by autograd."""
    table_SV = student_SV.clone().requires_grad_()
    log_q = torch.stack([log_prob(table_SV, text) for text in texts])
    log_p = torch.stack([log_prob(teacher_SV, text) for text in texts])
    (gradient_SV,) = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), table_SV)
    return gradient_SV


def estimate(loss: Minillm, student_SV: Tensor, teacher_SV: Tensor, text: Text, share: float = 0.0) -> Tensor:
    """The gradient [S, V] that training takes from one text."""
    head_VS, target_N = student_SV.T.clone().requires_grad_(), torch.tensor(text)
    hidden_NS = torch.eye(len(PREFIXES), dtype=torch.float64)[[STATES[text[:t]] for t in range(len(text))]]

    def log_probs() -> tuple[Tensor, Tensor]:
        heads = LinearHead(head_VS.detach()), LinearHead(teacher_SV.T)
        log_q_N, log_p_N = (target_log_probs(hidden_NS, head, target_N, chunk_tokens=2) for head in heads)
        return log_q_N, log_p_N

    weights = loss.weigh(WrittenText((len(text),), log_probs, share))
    sums = chunked_objective(loss, hidden_NS, head_VS, hidden_NS, teacher_SV.T, target_N, weights=weights)
    (gradient_VS,) = torch.autograd.grad(sums.total, head_VS)
    return gradient_VS.T


def mixture(student_SV: Tensor, teacher_SV: Tensor, share: float) -> Tensor:
    return (share * teacher_SV.softmax(-1) + (1 - share) * student_SV.softmax(-1)).log()


def mean_and_variance(
    loss: Minillm, student_SV: Tensor, teacher_SV: Tensor, texts: Sequence[Text], share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Of the estimate over texts from the mixture, by enumeration: [S, V] each."""
    drawn_SV = mixture(student_SV, teacher_SV, share)
    chance = torch.stack([log_prob(drawn_SV, text) for text in texts]).exp()[:, None, None]
    estimates = torch.stack([estimate(loss, student_SV, teacher_SV, text, share) for text in texts])
    mean_SV = (chance * estimates).sum(0)
    return mean_SV, (chance * (estimates - mean_SV) ** 2).sum(0)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("single_step", [True, False])
def test_the_mean_over_all_texts_is_the_gradient_of_the_sequence_level_reverse_kl(end: bool, single_step: bool) -> None:
    (student, teacher), texts = tables(), texts_of(end=end)
    mean, _ = mean_and_variance(make_loss("minillm", single_step=single_step, **UNBIASED), student, teacher, texts)
    torch.testing.assert_close(mean, exact_gradient(student, teacher, texts), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("end", [True, False])
def test_the_mean_over_20000_drawn_texts_is_within_three_standard_errors_and_the_single_step_lowers_the_variance(
    end: bool,
) -> None:
    (student, teacher), texts, num_texts = tables(), texts_of(end=end), 20_000
    prefixes: list[Text] = [()] * num_texts
    random = torch.Generator().manual_seed(1)
    for _ in range(LONGEST):  # token by token, as a model writes
        q_N = student.softmax(-1)[[STATES.get(prefix, 0) for prefix in prefixes], 1]
        tokens = (torch.rand(num_texts, generator=random, dtype=torch.float64) < q_N).long().tolist()
        ended = [end and 0 in prefix for prefix in prefixes]
        prefixes = [p if done else (*p, token) for p, done, token in zip(prefixes, ended, tokens, strict=True)]
    share = torch.tensor([prefixes.count(text) for text in texts], dtype=torch.float64)[:, None, None] / num_texts
    assert share.sum() == 1
    exact, variances = exact_gradient(student, teacher, texts), {}
    for single_step in (True, False):
        loss = make_loss("minillm", single_step=single_step, **UNBIASED)
        estimates = torch.stack([estimate(loss, student, teacher, text) for text in texts])
        mean = (share * estimates).sum(0)
        variance = (share * (estimates - mean) ** 2).sum(0)
        variances[single_step] = float(variance.sum())
        told = f"total variance of one text's gradient {variances[single_step]:.4f}, |gradient| {exact.norm():.4f}"
        assert ((mean - exact).abs() <= 3 * (variance / num_texts).sqrt() + 1e-12).all(), told
    print(f"end={end}: total variance of one text's gradient, with the single step and without: {variances}")
    assert variances[True] < 0.6 * variances[False], variances


def test_a_single_step_is_the_mean_of_the_next_rewards_gradient_over_the_token() -> None:
    """With texts of one token nothing follows: the whole gradient is that of the reverse KL of the token."""
    student, teacher = tables()
    loss, texts = make_loss("minillm", **UNBIASED), texts_of(end=False, longest=1)
    table = student.clone().requires_grad_()
    Rkl()(table[:1], teacher[:1]).sum().backward()
    for text in texts:
        torch.testing.assert_close(estimate(loss, student, teacher, text), table.grad, rtol=1e-12, atol=1e-14)
    sampled = make_loss("minillm", single_step=False, **UNBIASED)
    mean, variance = mean_and_variance(sampled, student, teacher, texts)
    torch.testing.assert_close(mean, table.grad, rtol=1e-12, atol=1e-14)
    assert variance.sum() > 0.01


@pytest.mark.parametrize(
    ("single_step", "length_norm", "expected"),
    [
        (True, False, [4.0, 4.0, 0.0, 0.0]),  # 2 + 4/2, 4, nothing; nothing
        (True, True, [2.0, 4.0, 0.0, 0.0]),  # 4 / 2 terms
        (False, False, [3.0, 4.0, 4.0, 8.0]),  # 1 + 2/2 + 4/4, 2 + 4/2, 4; 8
        (False, True, [1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_returns_by_hand(single_step: bool, length_norm: bool, expected: list[float]) -> None:
    """Rewards 1, 2, 4 of a text of three tokens and 8 of one, discounted by a half a token."""
    loss = Minillm(single_step=single_step, length_norm=length_norm, gamma=0.5)
    assert loss.returns(torch.tensor([1.0, 2.0, 4.0, 8.0]), (3, 1)).tolist() == expected
    assert loss.returns(torch.zeros(0), ()).tolist() == []


def test_length_normalised_means_are_the_formulas_sum_over_all_texts() -> None:
    """Sum over texts and tokens of q(text) [gradient of KL_t - mean of the later rewards x gradient of log q(y_t)]."""
    (student, teacher), texts = tables(), texts_of(end=True)
    table = student.clone().requires_grad_()
    log_q, log_p = table.log_softmax(-1), teacher.log_softmax(-1)
    surrogate = torch.zeros(())
    for text in texts:
        rewards = [(log_p - log_q)[STATES[text[:t]], token].detach() for t, token in enumerate(text)]
        for t, token in enumerate(text):
            state, later = STATES[text[:t]], rewards[t + 1 :]
            kl = (log_q[state].exp() * (log_q[state] - log_p[state])).sum()
            term = kl - sum(later) / max(len(later), 1) * log_q[state, token]
            surrogate = surrogate + log_prob(student, text).exp() * term
    (expected,) = torch.autograd.grad(surrogate, table)
    mean, _ = mean_and_variance(make_loss("minillm", ratio_clip=1e9), student, teacher, texts)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-14)
    assert (mean - exact_gradient(student, teacher, texts)).norm() > 0.01 * mean.norm(), "it is not the gradient itself"


@pytest.mark.parametrize("end", [True, False])
def test_in_teacher_mixed_text_the_weight_corrects_its_own_token_and_no_other(end: bool) -> None:
    """Prefixes and what follows stay those of the mixture: with one token there is no bias, with three there is."""
    (student, teacher), share = tables(), 0.2
    loss = make_loss("minillm", **UNBIASED)
    one = texts_of(end=end, longest=1)
    mean, _ = mean_and_variance(loss, student, teacher, one, share)
    torch.testing.assert_close(mean, exact_gradient(student, teacher, one), rtol=1e-12, atol=1e-14)

    texts = texts_of(end=end)
    drawn, table = mixture(student, teacher, share), student.clone().requires_grad_()
    log_q, log_p = table.log_softmax(-1), teacher.log_softmax(-1)
    reward = (log_p - log_q).detach()

    def later(text: Text) -> Tensor:
        """Mean of the rewards after this prefix, over the mixture."""
        if len(text) == LONGEST or (end and 0 in text):
            return torch.zeros((), dtype=torch.float64)
        state = STATES[text]
        return sum(drawn[state, y].exp() * (reward[state, y] + later((*text, y))) for y in (0, 1))

    surrogate = torch.zeros(())
    for prefix, state in STATES.items():
        if end and 0 in prefix:
            continue
        kl = (log_q[state].exp() * (log_q[state] - log_p[state])).sum()
        long = sum(log_q[state, y].exp() * later((*prefix, y)) for y in (0, 1))  # w times the mixture is q
        surrogate = surrogate + log_prob(drawn, prefix).exp() * (kl - long) if prefix else surrogate + kl - long
    (expected,) = torch.autograd.grad(surrogate, table)
    mean, _ = mean_and_variance(loss, student, teacher, texts, share)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-14)
    exact = exact_gradient(student, teacher, texts)
    bias = float((mean - exact).norm() / exact.norm())
    print(f"end={end}: bias of the teacher-mixed gradient {bias:.3f} of its norm at share {share}")
    assert 0.01 < bias < 0.5
    assert torch.nn.functional.cosine_similarity(mean.flatten(), exact.flatten(), dim=0) > 0.9


def test_the_importance_weight_is_student_over_mixture() -> None:
    q, p = torch.tensor([0.5, 0.2, 1e-30], dtype=torch.float64), torch.tensor([0.1, 0.8, 0.5], dtype=torch.float64)
    torch.testing.assert_close(importance(q.log(), p.log(), 0.2), q / (0.2 * p + 0.8 * q))
    assert importance(q.log(), p.log(), 0.0).tolist() == [1, 1, 1]


def test_the_clip_takes_the_gradient_that_ppos_minimum_takes() -> None:
    """max(-A ratio, -A clamp(ratio)), the ratio differentiable in log q, written as PPO's paper has it."""
    random = torch.Generator().manual_seed(3)
    log_q, log_p = (-3 * torch.rand(2, 400, generator=random, dtype=torch.float64)).unbind()
    loss = Minillm(ratio_clip=0.15)
    weights = loss.weigh(WrittenText((4,) * 100, lambda: (log_q, log_p), 0.3))
    leaf = log_q.clone().requires_grad_()
    ratio = (leaf - (0.3 * log_p.exp() + 0.7 * log_q.exp()).log()).exp()
    advantage = loss.returns(log_p - log_q, (4,) * 100)
    torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.85, 1.15)).sum().backward()
    torch.testing.assert_close(weights.cross_entropy_N, -leaf.grad)
    clipped = (weights.cross_entropy_N == 0) & (advantage != 0)
    assert 20 < clipped.sum() < 200
    sides = {(bool(a > 0), bool(r > 1)) for a, r in zip(advantage[clipped], ratio[clipped], strict=True)}
    assert sides == {(True, True), (False, False)}
    torch.testing.assert_close(weights.divergence_N, ratio.detach())  # the single step is weighed, not clipped


def test_rewards_are_divided_by_their_scale_then_clipped() -> None:
    log_q, log_p = torch.zeros(3), torch.tensor([0.25, -3.0, 9.0])
    loss = Minillm(single_step=False, length_norm=False, gamma=0, reward_scale=0.5, reward_clip=5)
    weights = loss.weigh(WrittenText((1, 1, 1), lambda: (log_q, log_p)))
    assert weights.cross_entropy_N.tolist() == [0.5, -5, 5]
    assert weights.divergence_N.tolist() == [0, 0, 0], "without single_step"


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_student_that_is_its_teacher_has_no_gradient_in_any_text(share: float) -> None:
    student, _ = tables()
    for text in texts_of(end=True):
        assert estimate(make_loss("minillm"), student, student, text, share).abs().max() < 1e-15


def test_on_text_of_another_it_is_the_reverse_kl() -> None:
    loss = make_loss("minillm")
    assert loss.on("student") is loss
    assert type(loss.on("data")) is type(loss.on("teacher")) is Rkl


@pytest.mark.parametrize(
    "params", [{"gamma": 1.1}, {"reward_scale": 0}, {"reward_clip": 0}, {"ratio_clip": 0}, {"length_norm": 1}]
)
def test_values_outside_their_ranges_are_refused(params: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"loss\.{next(iter(params))}="):
        make_loss("minillm", **params)
