"""Diversity against numbers worked by hand and against nltk's sentence_bleu."""

import random

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from kdrun.evaluation.diversity import (
    diversity,
    diversity_protocol,
    ead,
    sample_self_bleu,
    self_bleu,
    words_of,
)


def random_texts(number: int, *, seed: int, longest: int = 25) -> list[str]:
    """Texts of 1 to `longest` words from 12, so that n-grams repeat within a text and between texts."""
    draw = random.Random(seed)
    return [" ".join(draw.choices("abcdefghijkl", k=draw.randint(1, longest))) for _ in range(number)]


def nltk_self_bleu(texts: list[str]) -> list[float]:
    words = [text.lower().split() for text in texts]
    smoothing = SmoothingFunction().method1
    return [
        100 * sentence_bleu(words[:i] + words[i + 1 :], one, smoothing_function=smoothing)
        for i, one in enumerate(words)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_of_a_corpus_is_that_of_nltk(seed: int) -> None:
    texts = random_texts(40, seed=seed)
    texts += [texts[0], texts[1] + " extra", "entirely different words here now", "x", "a a a a a a"]
    assert self_bleu(texts) == pytest.approx(nltk_self_bleu(texts), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_self_bleu_of_a_prompt_is_the_mean_of_nltk_over_its_samples(number: int) -> None:
    decodings = [random_texts(20, seed=100 + seed) for seed in range(number)]
    expected = [sum(nltk_self_bleu(list(samples))) / number for samples in zip(*decodings, strict=True)]
    assert sample_self_bleu(decodings) == pytest.approx(expected, rel=1e-12)


def test_bleu_worked_by_hand() -> None:
    """5 words against 5: 4 of 5 words match, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; no brevity penalty."""
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d e", "a b c d x"]) == pytest.approx([expected, expected])


def test_equal_texts_score_100_and_texts_without_a_common_word_0() -> None:
    assert self_bleu(["The cat sat down.", "the cat  sat down."]) == pytest.approx([100, 100])
    assert self_bleu(["a b c d", "e f g h"]) == [0, 0]
    assert sample_self_bleu([["a b c d", "a b c d"], ["a b c d", "w x y z"]]) == pytest.approx([100, 0])


def test_texts_without_words_are_alike() -> None:
    assert self_bleu(["", " ", "a b c d"]) == [100, 100, 0]
    assert self_bleu(["", "a b c d"]) == [0, 0]
    assert self_bleu(["a b c d"]) == [0]
    assert self_bleu([]) == []


def test_a_short_text_among_very_long_ones_scores_0_and_no_error() -> None:
    """BLEU's brevity penalty exp(1 - 2000) is 0 in float64."""
    assert self_bleu(["a", "a " * 2000, "b " * 2000])[0] == 0


def test_samples_of_one_decoding_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        sample_self_bleu([["a"]])
    with pytest.raises(ValueError, match="shorter|longer"):
        sample_self_bleu([["a"], ["a", "b"]])


def test_distinct_worked_by_hand() -> None:
    """First 4 words: "a b a b" and "A b c": words 3 of 7; pairs ab, ba, ab, ab, bc: 3 of 5; triples aba, bab, abc: all;
    one quadruple."""
    found = diversity(["a b a b x y z", "A b\nc"], words=4, vocab_size=100)
    assert found.corpus["distinct_1"] == pytest.approx(300 / 7)
    assert found.corpus["distinct_2"] == pytest.approx(60)
    assert found.corpus["distinct_3"] == found.corpus["distinct_4"] == 100
    assert found.corpus["distinct_words"] == 7
    assert found.rows["text_distinct_1"] == [50, 100]
    assert found.rows["text_distinct_2"] == pytest.approx([200 / 3, 100])
    assert found.rows["text_distinct_4"] == [100, 100]  # the second has none to repeat


def test_a_model_that_writes_nothing_is_not_diverse() -> None:
    found = diversity(["", "\n", ""], words=30, vocab_size=100)
    assert {name for name, value in found.corpus.items() if value} == set()
    assert found.rows["self_bleu"] == [100, 100, 100]


def test_longer_texts_do_not_change_distinct_beyond_the_budget() -> None:
    texts = random_texts(20, seed=3)
    first = [" ".join(text.split()[:5]) for text in texts]
    longer, shorter = (diversity(some, words=5, vocab_size=100) for some in (texts, first))
    for name in ("distinct_1", "distinct_2", "distinct_3", "distinct_4", "distinct_words"):
        assert longer.corpus[name] == shorter.corpus[name]


def test_ead_worked_by_hand() -> None:
    """V = 2 and 2 words: 2 (1 - 1/4) = 1.5 different ones are expected; and one word is always one of one."""
    assert ead(["a", "b"], vocab_size=2) == pytest.approx(100 * 2 / 1.5)
    assert ead(["a", "a"], vocab_size=2) == pytest.approx(100 * 1 / 1.5)
    assert ead(["a"], vocab_size=50257) == pytest.approx(100, rel=1e-9)
    assert ead([], vocab_size=10) == 0


def test_ead_of_uniform_draws_is_100_at_any_length_where_distinct_falls() -> None:
    """The fault of distinct-1 that EAD was made for: the same distribution, texts of different length."""
    draw = random.Random(0)
    found = []
    for length in (5, 50):
        texts = [" ".join(str(draw.randrange(500)) for _ in range(length)) for _ in range(20)]
        found.append(diversity(texts, words=length, vocab_size=500))
    assert [one.corpus["ead"] for one in found] == pytest.approx([100, 100], abs=5)
    assert found[0].corpus["distinct_1"] > 85
    assert found[1].corpus["distinct_1"] < 45


def test_words_are_lower_case_between_white_space() -> None:
    assert words_of(" The cat,\n\tthe END. ") == ("the", "cat,", "the", "end.")


def test_every_value_stands_for_every_text() -> None:
    found = diversity(random_texts(7, seed=0), words=10, vocab_size=100)
    assert {len(values) for values in found.rows.values()} == {7}
    assert set(found.rows) == {*(f"text_distinct_{n}" for n in (1, 2, 3, 4)), "self_bleu"}


def test_protocol_declares_budget_and_vocabulary() -> None:
    protocol = diversity_protocol(words=30, vocab_size=50257)
    assert "30 words" in protocol["distinct"]
    assert "50257" in protocol["ead_vocabulary"]
