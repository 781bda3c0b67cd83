"""Texts written by two models at once, against a loop without caches, padding and batches, and exact probabilities."""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kdrun.errors import UserError
from kdrun.generation import reading
from kdrun.generation.generate import Generation, Sampling, generate
from kdrun.generation.reading import Mixture

EOS, ROWS = 0, 40
PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8], [11, 12], [33, 2, 6, 31, 5], [8, 8]]


def gpt2(num_rows: int, *, positions: int = 32) -> GPT2LMHeadModel:
    """Uncertain of the next token, dropout on."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=num_rows, n_embd=16, n_layer=2, n_head=2, n_positions=positions))
    with torch.no_grad():
        model.transformer.wte.weight.mul_(10)
    return model.train()


def llama(num_rows: int) -> LlamaForCausalLM:
    """Another family, uncertain elsewhere."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=num_rows, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def mixed(student, teacher, share: float, ids: list[int], *, rows: int = ROWS) -> np.ndarray:
    """Exact probabilities of the next token, float64: one whole forward pass of each model."""
    with torch.no_grad():
        scores = [model.eval()(torch.tensor([ids])).logits[0, -1, :rows].double() for model in (teacher, student)]
    teacher_p, student_p = (torch.softmax(x, dim=0).numpy() for x in scores)
    return share * teacher_p + (1 - share) * student_p


def alone(student, teacher, share: float, prompt: list[int], *, uniforms: np.ndarray, change) -> Generation:
    """The reference: token by token from the running sum of the changed mixture."""
    ids = list(prompt)
    for uniform in uniforms:
        p = change(mixed(student, teacher, share, ids))
        token = int(np.searchsorted(p.cumsum() / p.sum(), uniform, side="right"))
        if token == EOS:
            return Generation(ids[len(prompt) :], finished=True)
        ids.append(token)
    return Generation(ids[len(prompt) :], finished=False)


def written(student, sampling: Sampling, *, mixed_with: Mixture | None = None, batch_size: int = 4, **more):
    arguments = {"prompts": PROMPTS, "eos_id": EOS, "pad_id": EOS, "seed": 3, **more}
    return generate(student, sampling=sampling, mixed_with=mixed_with, batch_size=batch_size, **arguments)


def three_likeliest(p: np.ndarray) -> np.ndarray:
    return np.where(p >= np.sort(p)[-3], p, 0)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("student_is", ["gpt2", "llama"])
def test_texts_are_those_of_a_plain_loop_of_whole_passes_of_both_models(student_is, share):
    """Both heads have padded rows past those that count, other numbers of them; one row leaves, others come."""
    student, teacher = (gpt2(45), llama(50)) if student_is == "gpt2" else (llama(50), gpt2(45))
    limits = [16, 3, 16, 5, 1, 9]
    for fields, change in (
        ({}, lambda p: p),
        ({"temperature": 2.0}, np.sqrt),  # of the mixture, not of the two models
        ({"top_k": 3}, three_likeliest),
    ):
        wanted = [
            alone(student, teacher, share, prompt, uniforms=np.random.default_rng((3, i)).random(limit), change=change)
            for i, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True))
        ]
        found = written(student, Sampling(16, **fields), mixed_with=Mixture(teacher, share, ROWS), limits=limits)
        assert found == wanted


def test_at_share_0_the_text_is_the_students_own_and_at_share_1_the_teachers():
    student, teacher = gpt2(ROWS), llama(ROWS)
    for share, own in ((0.0, student), (1.0, teacher)):
        for sampling in (Sampling(16), Sampling(16, temperature=0)):
            assert written(student, sampling, mixed_with=Mixture(teacher, share, ROWS)) == written(own, sampling)


def test_mixed_texts_are_the_same_in_any_batch_and_both_models_get_their_modes_back():
    student, teacher = gpt2(ROWS), gpt2(ROWS).eval()
    mixture = Mixture(llama(ROWS), 0.4, ROWS)
    texts = [written(student, Sampling(16), mixed_with=mixture, batch_size=size) for size in (1, 4, 6)]
    assert texts[0] == texts[1] == texts[2]
    written(student, Sampling(2), mixed_with=Mixture(teacher, 0.5, ROWS))
    assert student.training
    assert not teacher.training


def test_texts_of_two_tokens_come_as_often_as_the_mixture_at_each_token_says():
    """Chi-square over all 16 texts; a mixture of whole texts has another distribution, which the test can tell."""
    student, teacher = gpt2(4), llama(4)
    texts = list(itertools.product(range(4), repeat=2))

    def exact(share: float) -> np.ndarray:
        first, *second = (mixed(student, teacher, share, ids, rows=4) for ids in ([1], *([1, a] for a in range(4))))
        return np.array([first[a] * second[a][b] for a, b in texts])

    found = written(
        student, Sampling(2), mixed_with=Mixture(teacher, 0.3, 4), prompts=[[1]] * 5000, eos_id=-1, batch_size=500
    )
    counts = Counter(tuple(text.token_ids) for text in found)
    observed, of_texts = [counts[text] for text in texts], 0.3 * exact(1) + 0.7 * exact(0)
    assert 5000 * exact(0.3).min() > 5
    assert chisquare(observed, 5000 * exact(0.3)).pvalue > 0.001
    assert chisquare(observed, 5000 * of_texts).pvalue < 1e-6


def test_a_share_outside_0_to_1_and_a_teacher_with_too_few_positions_are_refused():
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            Mixture(None, share, ROWS)
    with pytest.raises(UserError, match="8 tokens and the model has 20 positions"):
        written(llama(ROWS), Sampling(13), mixed_with=Mixture(gpt2(ROWS, positions=20), 0.2, ROWS))


def test_a_model_mixed_with_itself_leaves_torchs_setting_of_products_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher alone writes as a mixture of itself; its head hooked twice would be closed in the wrong order."""
    setting = [0]

    @contextmanager
    def changed() -> Iterator[None]:
        before = setting[0]
        setting[0] = before + 1
        yield
        setting[0] = before

    monkeypatch.setattr(reading, "fast_float32_products", changed)
    model = gpt2(ROWS)
    written(model, Sampling(3), mixed_with=Mixture(model, 1.0, ROWS))
    assert setting == [0]
