"""ROUGE against numbers worked by hand and against rouge_score called directly."""

import random
from importlib.metadata import version

import pytest

from kdrun.evaluation.rouge import rouge_protocol, rouge_scores


def test_lcs_example_worked_by_hand():
    """Lin 2004, section 3.1: S1 "police killed the gunman" is the reference of S2 and S3.

    With stems S2 "police kill the gunman" is equal to it (without: R-L 3/4, as in the paper). S3 "the gunman kill
    police" has all 4 words, one bigram of 3, and the longest common subsequence "the gunman", 2 of 4 (as in the paper).
    """
    reference = [["police killed the gunman"]] * 2
    scores = rouge_scores(["police kill the gunman", "the gunman kill police"], reference)
    assert scores["rouge_1"] == pytest.approx([100, 100])
    assert scores["rouge_2"] == pytest.approx([100, 100 / 3])
    assert scores["rouge_l"] == pytest.approx([100, 50])


def test_f_measure_of_unequal_lengths_worked_by_hand():
    """3 tokens against 5, longest common subsequence 2: P 2/3, R 2/5, F = 2PR / (P + R) = 1/2."""
    assert rouge_scores(["a b x"], [["a c b d e"]])["rouge_l"] == pytest.approx([50])


def test_words_are_stemmed():
    assert rouge_scores(["She was running quickly"], [["she was runs quick"]])["rouge_1"][0] > 70


def test_best_reference_counts_for_each_measure_alone():
    bag, ordered = "d c b a", "a b x y z"  # the first shares 4 words in wrong order, the second an ordered pair
    both = rouge_scores(["a b c d"], [[bag, ordered]])
    singles = rouge_scores(["a b c d"] * 2, [[bag], [ordered]])
    assert both == {name: [max(values)] for name, values in singles.items()}
    assert singles["rouge_1"][0] > singles["rouge_1"][1]
    assert singles["rouge_2"][0] < singles["rouge_2"][1]


def test_scores_equal_the_library_called_directly():
    from rouge_score.rouge_scorer import RougeScorer

    draw = random.Random(0)
    words = [
        "the",
        "a",
        "running",
        "runner",
        "generously",
        "cats",
        "cat,",
        "Dogs!",
        "dog's",
        "42",
        "don't",
        "relational",
    ]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(80)]
    predictions, references = texts[:40], [[text] for text in texts[40:]]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    direct = [scorer.score(one[0], prediction) for prediction, one in zip(predictions, references, strict=True)]
    scores = rouge_scores(predictions, references)
    for name, library_name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert scores[name] == [100 * one[library_name].fmeasure for one in direct]


def test_many_references_as_in_super_natural_instructions_score_the_best_of_them():
    """Up to 13 references, some twice, some with white space around: the maximum over the library's single scores."""
    from rouge_score.rouge_scorer import RougeScorer

    draw = random.Random(1)
    words = ["the", "running", "cats", "cat,", "Dogs!", "42", "relational", "of"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(400)]
    predictions = texts[:40]
    references = [[f" {text}\n" for text in draw.choices(texts[40:], k=draw.randint(1, 13))] for _ in predictions]
    scores = rouge_scores(predictions, references)
    single = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score
    for i, (prediction, of_one) in enumerate(zip(predictions, references, strict=True)):
        each = [single(reference, prediction) for reference in of_one]
        for name, library_name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert scores[name][i] == max(100 * one[library_name].fmeasure for one in each)
    assert [scores[name] for name in scores] == list(rouge_scores(predictions, [2 * r for r in references]).values())


@pytest.mark.parametrize("text", ["", "  \n", "!?", "\u4f60\u597d"])
def test_prediction_without_letters_or_digits_scores_zero(text):
    assert rouge_scores([text], [["a cat", text]]) == {"rouge_1": [0], "rouge_2": [0], "rouge_l": [0]}


def test_empty_lists_give_empty_scores():
    assert rouge_scores([], []) == {"rouge_1": [], "rouge_2": [], "rouge_l": []}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 predictions but 1 lists"),
        (["a"], [[]], r"references\[0\] is empty"),
        (["a"], ["a cat"], r"references\[0\] is a string"),
    ],
)
def test_lists_that_do_not_match_are_an_error(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        rouge_scores(predictions, references)


def test_protocol_names_library_and_choices():
    protocol = rouge_protocol()
    assert protocol["library"] == f"rouge-score {version('rouge-score')}"
    assert protocol["stemmer"] is True
    assert protocol["several_references"] == "maximum"
