"""Sampled texts: the same in any batch, and as often as their exact probability."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from kdrun.generation.generate import Sampling, generate

EOS = 0


@pytest.fixture(scope="module")
def mildly_random() -> GPT2LMHeadModel:
    """A GPT-2 over 3,000 tokens whose next token is uncertain, and at times the end."""
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=3000, n_embd=32, n_layer=2, n_head=2, n_positions=96)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    return model


def test_sampled_texts_are_the_same_in_other_batches_and_another_order(mildly_random):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 3000, (1 + i % 40,), generator=generator).tolist() for i in range(64)]
    limits = [1 + 7 * i % 50 for i in range(64)]  # as if each ended by itself

    def texts(order, batch_size):
        chosen = {"prompts": [prompts[i] for i in order], "limits": [limits[i] for i in order]}
        found = generate(
            mildly_random, sampling=Sampling(50), eos_id=-1, pad_id=0, batch_size=batch_size, seed=3, indices=order,
            **chosen,
        )  # fmt: skip
        return dict(zip(order, found, strict=True))

    narrow = texts(range(64), 4)
    assert [len(narrow[i].token_ids) for i in range(64)] == limits
    for order, batch_size in ((range(64), 32), (range(63, -1, -1), 32), (range(0, 64, 2), 7)):
        other = texts(order, batch_size)
        assert sum(other[i] == narrow[i] for i in order) >= 0.95 * len(order)


def test_short_texts_come_as_often_as_their_exact_probability():
    """Every text of at most 3 tokens over 4 is enumerated: forward passes give its probability, 3,000 texts its count.

    With top-k 3 and a temperature, so that some texts are impossible; the texts are written in batches with refills.
    """
    torch.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=8)).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    exact: dict[tuple[int, ...], float] = {}

    def enumerate_after(text: tuple[int, ...], p: float) -> None:
        if len(text) == 3 or EOS in text:
            exact[text] = p
            return
        with torch.no_grad():
            scores = model(torch.tensor([[2, 1, *text]])).logits[0, -1].double() / 1.3
        kept = scores.topk(3).indices
        for token, share in zip(kept.tolist(), torch.softmax(scores[kept], dim=0).tolist(), strict=True):
            enumerate_after((*text, token), p * share)

    enumerate_after((), 1.0)
    generations = generate(
        model, [[2, 1]] * 3000, Sampling(3, 1.3, top_k=3), eos_id=EOS, pad_id=0, batch_size=500, seed=1
    )
    counts = Counter((*g.token_ids, *([EOS] if g.finished else [])) for g in generations)
    assert set(counts) <= set(exact)
    common = [text for text, p in exact.items() if 3000 * p >= 5]
    observed, expected = [counts[text] for text in common], [3000 * exact[text] for text in common]
    assert len(common) >= 8
    rest = 3000 - sum(expected)
    assert chisquare([*observed, 3000 - sum(observed)], [*expected, rest]).pvalue > 0.001
