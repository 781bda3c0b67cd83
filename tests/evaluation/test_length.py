"""Lengths counted by hand."""

import pytest

from kdrun.evaluation.length import length_protocol, length_scores, nearest_length


def test_words_tokens_and_the_share_of_the_reference() -> None:
    scores = length_scores(["one two three", "", "a  b\nc d"], [["x y"], ["x y"], ["x"]], num_tokens=[5, 0, 9])
    assert scores == {
        "words": [3, 0, 4],
        "tokens": [5, 0, 9],
        "reference_words": [2, 2, 1],
        "length_ratio": [1.5, 0, 4],
    }


def test_nearest_reference_counts_and_of_two_equally_near_the_shorter() -> None:
    assert length_scores(["a b c"], [["x", "x x x x", "x x"]], num_tokens=[3])["reference_words"] == [2]
    assert nearest_length(3, [9, 4, 1]) == 4


def test_reference_without_a_word_counts_as_one() -> None:
    assert length_scores(["a b", ""], [[""], [" "]], num_tokens=[2, 0])["length_ratio"] == [2, 0]


def test_lists_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 predictions but 2 numbers"):
        length_scores(["a"], [["a"]], num_tokens=[1, 2])
    with pytest.raises(ValueError, match="empty"):
        length_scores(["a"], [[]], num_tokens=[1])


def test_protocol_says_what_a_word_is() -> None:
    assert length_protocol()["word"] == "between white space"
