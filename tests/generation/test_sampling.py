"""The choice of a token against exact probabilities and transformers' processors."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from kdrun.errors import UserError
from kdrun.generation.sampling import (
    NOT_A_NUMBER,
    RepeatedNgrams,
    Sampling,
    argmax,
    inverse_cdf,
    resolved_settings,
    score_changes,
)

NUM_DRAWS = 20_000


def scores_of(num_tokens: int) -> torch.Tensor:
    """Scores of a text-like distribution: a few likely tokens, a long tail."""
    return 3 * torch.randn(num_tokens, generator=torch.Generator().manual_seed(7))


def counts_of(scores_V: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """How often each token comes in NUM_DRAWS draws."""
    uniforms = torch.rand(NUM_DRAWS, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores_BV = score_changes(sampling)(scores_V.expand(NUM_DRAWS, -1), [[0]] * NUM_DRAWS, [[]] * NUM_DRAWS)
    return np.bincount(inverse_cdf(scores_BV, uniforms).numpy(), minlength=len(scores_V))


def limited(scores_V: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Probabilities by the definitions: divide, keep the k largest, keep the fewest whose sum reaches p; float64."""
    scores = scores_V.double().numpy() / temperature
    order = np.argsort(-scores)
    p = np.zeros(len(scores))
    kept = order[: top_k or None]
    p[kept] = np.exp(scores[kept] - scores.max())
    p /= p.sum()
    num_kept = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    p[order[num_kept:]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.7}, {"top_k": 12}, {"top_p": 0.8}, {"temperature": 1.5, "top_k": 40, "top_p": 0.9}],
    ids=str,
)
@pytest.mark.parametrize("num_tokens", [5, 256, 700])
def test_drawn_tokens_follow_the_exact_probabilities(num_tokens, fields):
    """Chi-square; the rare tokens are put together so that every cell expects 5 or more."""
    counts = counts_of(scores_of(num_tokens), Sampling(1, **fields))
    p = limited(scores_of(num_tokens), **fields)
    assert counts[p == 0].sum() == 0
    common = NUM_DRAWS * p >= 5
    cells = np.append(counts[common], counts[~common].sum())
    expected = NUM_DRAWS * np.append(p[common], p[~common].sum())
    if common.sum() > 1:  # one token alone has no frequency to test
        assert chisquare(cells[expected > 0], expected[expected > 0]).pvalue > 0.001


def test_the_draw_is_the_first_token_whose_running_sum_is_above_the_number():
    """One float64 running sum over the whole vocabulary is the reference for the search in two levels."""
    scores_BV = 2 * torch.randn(300, 50_257, generator=torch.Generator().manual_seed(1))
    uniforms = torch.rand(300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cdf_BV = torch.softmax(scores_BV.double(), dim=-1).cumsum(dim=-1)
    exact = torch.searchsorted(cdf_BV, uniforms * cdf_BV[:, -1:], right=True)[:, 0]
    assert (inverse_cdf(scores_BV, uniforms) == exact).float().mean() > 0.99  # float32's softmax moves a border or two


@pytest.mark.parametrize("num_tokens", [4, 255, 256, 257, 1000])
def test_ends_of_the_unit_interval_draw_the_first_and_last_possible_token(num_tokens):
    scores = torch.full((2, num_tokens), float("-inf"))
    scores[:, 1 : num_tokens - 1] = 0.3
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert inverse_cdf(scores, ends).tolist() == [1, num_tokens - 2]


def test_a_token_of_probability_zero_is_never_drawn_at_a_border():
    """Every second token is impossible, and the numbers are the borders themselves."""
    scores = torch.where(torch.arange(600) % 2 == 0, 0.0, float("-inf"))
    borders = torch.arange(300, dtype=torch.float64)[:, None] / 300
    drawn = inverse_cdf(scores.expand(300, -1), borders)
    assert (drawn % 2 == 0).all()
    assert len(drawn.unique()) > 295


def test_nan_is_told_from_a_token():
    scores = torch.zeros(3, 300)
    scores[1, 270] = float("nan")
    half = torch.full((3, 1), 0.5, dtype=torch.float64)
    for tokens in (argmax(scores), inverse_cdf(scores, half)):
        assert (tokens == NOT_A_NUMBER).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [2, 3, 6])
def test_banned_tokens_are_those_of_transformers_at_every_length(size):
    generator = np.random.default_rng(size)
    ids = generator.integers(4, size=8).tolist() * 2 + generator.integers(4, size=40).tolist()
    begun = RepeatedNgrams(size, ids[:12])
    lengths_with_a_ban = 0
    for length in range(1, len(ids)):
        theirs = NoRepeatNGramLogitsProcessor(size)(torch.tensor([ids[:length]]), torch.zeros(1, 4))
        banned = set(torch.isinf(theirs[0]).nonzero()[:, 0].tolist())
        assert set(RepeatedNgrams(size, ids[:length]).banned(ids[:length])) == banned
        if length >= 12:
            assert set(begun.banned(ids[:length])) == banned
            begun.add(ids[: length + 1])
        lengths_with_a_ban += bool(banned)
    assert lengths_with_a_ban > 3
    assert RepeatedNgrams(0, ids).banned(ids) == []


def test_penalty_and_ban_are_those_of_transformers_for_texts_of_any_length():
    texts = [[3, 1, 3, 1, 3], [9, 2], [5, 5, 5]]
    scores_BV = scores_of(36).view(3, 12)
    change = score_changes(Sampling(1, temperature=0, repetition_penalty=1.3, no_repeat_ngram_size=2))
    mine = change(scores_BV, texts, [RepeatedNgrams(2, ids).banned(ids) for ids in texts])
    for row, ids in enumerate(texts):
        alone = torch.tensor([ids])
        theirs = RepetitionPenaltyLogitsProcessor(1.3)(alone, scores_BV[row : row + 1])
        assert torch.equal(mine[row : row + 1], NoRepeatNGramLogitsProcessor(2)(alone, theirs))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("no_repeat_ngram_size", 1),
    ],
)
def test_impossible_settings_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=rf"^eval\.{key}=.*type for example eval\.{key}="):
        Sampling(**{"max_new_tokens": 4, key: value})


def test_settings_of_the_record_name_every_field():
    settings = resolved_settings(Sampling(256, no_repeat_ngram_size=6))
    assert settings == {
        "max_new_tokens": 256,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 6,
        "do_sample": True,
        "num_beams": 1,
        "sampler": "inverse CDF, one numpy stream for each (seed, index of the prompt)",
    }
    assert resolved_settings(Sampling(8, temperature=0))["do_sample"] is False


def test_draws_of_one_row_do_not_depend_on_the_other_rows():
    scores_BV = scores_of(2000).view(4, 500)
    uniforms = torch.tensor([[0.1], [0.5], [0.9], [0.3]], dtype=torch.float64)
    alone = [inverse_cdf(scores_BV[i : i + 1], uniforms[i : i + 1]).item() for i in range(4)]
    assert inverse_cdf(scores_BV, uniforms).tolist() == alone
    assert Counter(alone)[NOT_A_NUMBER] == 0
