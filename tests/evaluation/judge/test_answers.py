"""What a judge's answer says, and what it does not."""

import pytest

from kdrun.evaluation.judge.answers import parse_choice, parse_score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("It is fine.\n[[7]]", 7),
        ("[[10]]", 10),
        ("[[ 6.5 ]]", 6.5),
        ("I give [[8]], so: [[8]]", 8),
        ("A 9 at first sight, 10 words long.\n[[3]]", 3),
        ("7", 7),
        ("**7/10**", 7),
        ("Rating: 7", 7),
        ("The score is **4**.", 4),
        ("I would say 5/10 because it is short.", 5),
        ("[6]", 6),
        ("[[7/10]]", 7),
        ("<think>perhaps [[2]]?</think>\n[[9]]", 9),
    ],
)
def test_scores_are_read_in_the_asked_form_and_in_the_unmistakable_others(answer: str, score: float) -> None:
    assert parse_score(answer) == score


@pytest.mark.parametrize(
    "answer",
    [
        "", "I like both", "[[A]]", "[[0]]", "[[11]]", "[[-3]]", "-3", "Rating: -7", "[[5]] or rather [[6]]",
        "Score: 5. Score: 6.", "There are 7 words.", "On a scale of 1 to 10 this is good.", "<think>[[7]]",
        "__import__('os').system('true')", "[[seven]]", "[[1e1]]",
    ],
)  # fmt: skip
def test_what_is_no_score_from_1_to_10_is_none(answer: str) -> None:
    assert parse_score(answer) is None


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("A is shorter.\n[[A]]", "A"),
        ("[[b]]", "B"),
        ("[[tie]]", "tie"),
        ("[[C]]", "tie"),
        ("B", "B"),
        ("**Tie**.", "tie"),
        ("Response A", "A"),
        ("Both do it.\nVerdict: B", "B"),
        ("Winner: **A**\nAs said.", "A"),
        ("[B]", "B"),
        ("<think>[[A]] it seems</think>[[B]]", "B"),
    ],
)
def test_choices_are_read_in_the_asked_form_and_in_the_unmistakable_others(answer: str, choice: str) -> None:
    assert parse_choice(answer) == choice


@pytest.mark.parametrize(
    "answer",
    ["", "I like both", "[[A]] or [[B]]", "A or B", "A is good, B is better", "Winner: a matter of taste", "[[7]]",
     "[[neither]]", "A response to the instruction", "<think>[[A]]"],
)  # fmt: skip
def test_what_does_not_choose_is_none(answer: str) -> None:
    assert parse_choice(answer) is None
