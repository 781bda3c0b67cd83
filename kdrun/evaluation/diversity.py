"""How much the texts of one decoding repeat themselves and each other, and the samples of one prompt each other.

A word is what stands between white space, in lower case: the same for texts of any model. All scores are x 100.

distinct-n: Li et al. 2016, arXiv 1510.03055. Over a set of texts it falls with their length (242 rambling answers of
643 words had a distinct-4 of 8 against 99 of the references), so only the first words of each text count here.
EAD: Liu, Sabour et al. 2022, "Rethinking and Refining the Distinct Metric", arXiv 2202.13587.
Self-BLEU: Zhu et al. 2018, "Texygen", arXiv 1802.01886: BLEU-4 of each text with the others as its references. nltk
needs a pass over all texts for each (25 s for 500); here the two largest counts of every n-gram are kept instead.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdrun.evaluation.length import nearest_length

ORDERS = (1, 2, 3, 4)
EPSILON = 0.1  # nltk's SmoothingFunction().method1: matches of an order that has none
Words = tuple[str, ...]


@dataclass
class Diversity:
    """`corpus`: of all texts together. `rows`: one value a text, in their order; their plain mean is the summary."""

    corpus: dict[str, float]
    rows: dict[str, list[float]]


def diversity(texts: Sequence[str], *, words: int, vocab_size: int) -> Diversity:
    """The diversity of one decoding's texts, one a prompt.

    corpus: distinct_1 to distinct_4, the different n-grams among the first `words` words of every text as a share of
    all of them (0 when there are none); distinct_words, how many words those were, below words x texts when texts are
    shorter; ead = different words / V (1 - ((V - 1) / V) ** C), over all C words, where V is `vocab_size`, to be the
    model's vocabulary (with the words seen as V, a model of few words would be judged by its own few; above 100 where
    more different words were seen than V draws would give).
    rows: text_distinct_1 to text_distinct_4 of each text's first words (a text of fewer than n words repeats none:
    100), and self_bleu of each text among all others (high is alike).
    """
    all_words = [words_of(text) for text in texts]
    first = [of_one[:words] for of_one in all_words]
    corpus = {f"distinct_{n}": _distinct([gram for one in first for gram in _ngrams(one, n)], empty=0) for n in ORDERS}
    corpus["distinct_words"] = float(sum(len(one) for one in first))
    corpus["ead"] = ead([word for one in all_words for word in one], vocab_size=vocab_size)
    rows = {f"text_distinct_{n}": [_distinct(list(_ngrams(one, n)), empty=100) for one in first] for n in ORDERS}
    return Diversity(corpus, {**rows, "self_bleu": self_bleu(texts)})


def sample_self_bleu(decodings: Sequence[Sequence[str]]) -> list[float]:
    """Return for each prompt the mean self-BLEU of its texts, one from each decoding: 100 when all are alike.

    Raises ValueError for fewer than two decodings, or decodings of different length.
    """
    if len(decodings) < 2:
        raise ValueError(f"{len(decodings)} decodings: self-BLEU of a prompt's samples needs at least two")
    scores = [self_bleu(of_prompt) for of_prompt in zip(*decodings, strict=True)]
    return [math.fsum(of_prompt) / len(of_prompt) for of_prompt in scores]


def diversity_protocol(*, words: int, vocab_size: int) -> dict[str, Any]:
    """Return what decides the numbers, for the run record."""
    return {
        "word": "between white space, lower case",
        "distinct": f"x 100, over the first {words} words of each text",
        "ead_vocabulary": f"the model's, {vocab_size}",
        "self_bleu": "BLEU-4 x 100 among all texts, uniform weights, smoothing method1 of nltk, nearest length",
        "sample_self_bleu": "the same among the samples of a prompt",
    }


def words_of(text: str) -> Words:
    """Return the words of a text: what stands between white space, in lower case."""
    return tuple(text.lower().split())


def ead(words: Sequence[str], *, vocab_size: int) -> float:
    """Return 100 times the different words over their expected number, were they drawn uniformly from a vocabulary."""
    expected = vocab_size * (1 - ((vocab_size - 1) / vocab_size) ** len(words))
    return 100 * len(set(words)) / expected if words else 0.0


def self_bleu(texts: Sequence[str]) -> list[float]:
    """Return BLEU-4 of each text with all others as its references, in one pass over the texts for each order.

    Equal to nltk's sentence_bleu with uniform weights and method1, but that a text without words scores 100 when there
    is another such text (nltk: 0, which would call a model that writes nothing diverse). By method1 two equal texts of
    fewer than 4 words stay below 100. A text with no other beside it scores 0.
    """
    all_words = [words_of(text) for text in texts]
    if len(all_words) < 2:
        return [0.0] * len(all_words)
    lengths = Counter(len(words) for words in all_words)
    penalties = {length: _log_brevity(length, lengths) for length in lengths}
    log_sums = [penalties[len(words)] for words in all_words]
    has_match = [False] * len(all_words)
    for n in ORDERS:
        for i, matches in enumerate(_clipped_matches(all_words, n)):
            has_match[i] |= n == 1 and matches > 0
            log_sums[i] += math.log((matches or EPSILON) / max(1, len(all_words[i]) - n + 1)) / len(ORDERS)
    without_words = 100.0 * (lengths[0] > 1)
    return [
        (100 * math.exp(log_sum) if matched else 0.0) if words else without_words
        for words, matched, log_sum in zip(all_words, has_match, log_sums, strict=True)
    ]


def _clipped_matches(all_words: Sequence[Words], n: int) -> Iterator[int]:
    """For each text: its n-grams, each counted at most as often as the other text that has most of it."""
    best: dict[Words, tuple[int, int, int]] = {}  # n-gram -> largest count, whose, largest count of any other
    for i, words in enumerate(all_words):
        for gram, count in Counter(_ngrams(words, n)).items():
            most, owner, second = best.get(gram, (0, -1, 0))
            best[gram] = (count, i, most) if count > most else (most, owner, max(second, count))
    for i, words in enumerate(all_words):
        counts = Counter(_ngrams(words, n))
        yield sum(min(count, best[gram][2] if best[gram][1] == i else best[gram][0]) for gram, count in counts.items())


def _log_brevity(length: int, lengths: Counter[int]) -> float:
    """Log of BLEU's penalty of a text of `length` words, against the nearest length among the other texts."""
    others = [other for other, count in lengths.items() if count > (other == length)]
    return min(0.0, 1 - nearest_length(length, others) / max(length, 1))


def _ngrams(words: Words, n: int) -> Iterator[Words]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _distinct(grams: list[Words], *, empty: float) -> float:
    return 100 * len(set(grams)) / len(grams) if grams else empty
