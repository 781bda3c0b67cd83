"""Exact match on pairs judged by hand."""

import pytest

from kdrun.evaluation.exact_match import exact_match, exact_match_protocol, normalise


def test_only_the_ends_are_forgiven_without_normalisation() -> None:
    predictions = ["Paris", "Paris", "paris", "Paris.", "P aris"]
    scores = exact_match(predictions, [["Paris"], [" Paris\n"], ["Paris"], ["Paris"], ["Paris"]])
    assert scores["exact_match"] == [100, 100, 0, 0, 0]
    assert scores["exact_match_normalised"] == [100, 100, 100, 100, 0]


def test_any_reference_will_do() -> None:
    assert exact_match(["b!", "c"], [["a", "B"], ["a", "b"]]) == {
        "exact_match": [0, 0],
        "exact_match_normalised": [100, 0],
    }


def test_normalised_is_lower_case_without_punctuation_and_articles_stay() -> None:
    assert normalise('  The  U.S.A.,\tan "end"!\n') == "the usa an end"
    assert normalise("\u00c9t\u00e9 \u2014 2") == "\u00e9t\u00e9 \u2014 2"  # ASCII punctuation only, as in MiniLLM


def test_an_empty_prediction_matches_an_empty_reference_only() -> None:
    assert exact_match(["", ""], [["", "a"], ["a"]])["exact_match"] == [100, 0]


def test_lists_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 predictions but 0 lists"):
        exact_match(["a"], [])
    assert exact_match([], []) == {"exact_match": [], "exact_match_normalised": []}


def test_protocol_names_the_rule() -> None:
    assert "articles kept" in exact_match_protocol()["exact_match_normalised"]
