"""Questions, their cost, and what the answers add up to, worked by hand."""

import json
from pathlib import Path

import pytest

from kdrun.errors import UserError
from kdrun.evaluation.judge.questions import REFERENCES, JudgedSet, estimate, judged_set, num_tokens
from kdrun.evaluation.judge.subjects import check_same_prompts, choose, evaluation_folders, read_examples
from kdrun.evaluation.judge.tally import outcome, tally

HERE = Path("run/eval/quick")


def row(i: int, **texts: str) -> dict:
    decodings = {name: {"text": text, "finished": True} for name, text in texts.items()}
    return {"instruction": f"Do {i}.", "input": "", "references": [f"done {i}", "other"], "nll": 1.0, **decodings}


def pairs(num: int) -> JudgedSet:
    rows = [row(i, greedy=f"mine {i}") for i in range(num)]
    return judged_set(HERE, "", rows, range(num), decoding="greedy", scores=(), against=REFERENCES)


def test_a_pair_is_asked_in_both_orders_with_the_texts_changed_over() -> None:
    first, second = pairs(1).questions
    assert (first.order, second.order) == ("AB", "BA")
    assert first.prompt.index("mine 0") < first.prompt.index("done 0")
    assert second.prompt.index("done 0") < second.prompt.index("mine 0")
    swapped = first.prompt.replace("mine 0", "@").replace("done 0", "mine 0").replace("@", "done 0")
    assert second.prompt == swapped
    assert "[[A]]" in first.prompt and "Do 0." in first.prompt


def test_a_run_is_compared_with_the_text_of_the_same_example_and_decoding() -> None:
    mine = [row(i, greedy=f"mine {i}", seed10=f"my sample {i}") for i in range(3)]
    theirs = [row(i, greedy=f"theirs {i}", seed10=f"their sample {i}") for i in range(3)]
    judged = judged_set(HERE, "", mine, [2], decoding="seed10", scores=(), against=(Path("other"), theirs))
    assert (judged.texts, judged.others) == (["my sample 2"], ["their sample 2"])


def test_an_example_without_a_reference_cannot_be_compared_with_it() -> None:
    rows = [row(0, greedy="g"), row(1, greedy="g") | {"references": []}]
    with pytest.raises(UserError, match="against=references: example 1 of"):
        judged_set(HERE, "", rows, [0, 1], decoding="greedy", scores=[], against=REFERENCES)


def test_diversity_asks_once_about_all_samples_and_is_refused_without_two() -> None:
    rows = [row(0, greedy="g", seed10="red", seed20="green", seed30="blue")]
    (question,) = judged_set(HERE, "", rows, [0], decoding="greedy", scores=["diversity"], against=None).questions
    assert all(text in question.prompt for text in ("red", "green", "blue")) and ">\ng\n<" not in question.prompt
    rows = [row(0, greedy="g", seed10="red")]
    with pytest.raises(UserError, match=r"at least two samples.*has 1; .*eval.seeds"):
        judged_set(HERE, "", rows, [0], decoding="greedy", scores=["diversity"], against=None)


def test_a_decoding_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"decoding=seed10.*there are: greedy"):
        judged_set(HERE, "", [row(0, greedy="g")], [0], decoding="seed10", scores=["quality"], against=None)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("A", "B", "win"), ("B", "A", "loss"), ("tie", "tie", "tie"),
        ("A", "A", "inconsistent"), ("B", "B", "inconsistent"), ("A", "tie", "inconsistent"),
        ("tie", "A", "inconsistent"), ("B", "tie", "inconsistent"), ("tie", "B", "inconsistent"),
    ],
)  # fmt: skip
def test_a_win_needs_both_orders(first: str, second: str, said: str) -> None:
    assert outcome(first, second) == said


def test_the_win_rate_counts_ties_and_inconsistencies_half_and_leaves_out_what_was_not_judged() -> None:
    judged = pairs(8)
    said = [
        ("[[A]]", "[[B]]"), ("[[A]]", "[[B]]"), ("[[A]]", "[[B]]"),  # three wins
        ("[[B]]", "[[A]]"),  # a loss
        ("[[tie]]", "[[tie]]"),  # a tie
        ("[[A]]", "[[A]]"),  # first place wins
        ("I like both", "[[A]]"),  # unreadable in one order
        ("[[A]]", None),  # one request failed
    ]  # fmt: skip
    answers = {question: said[question.index][question.order == "BA"] for question in judged.questions}
    summary, rows = tally(judged, answers)
    assert summary == {
        "num_examples": 8, "win_rate": (3 + 0 + 0.5 + 0.5) / 6, "wins": 3, "losses": 1, "ties": 1, "inconsistent": 1,
        "pairwise_judged": 6, "pairwise_parse_failures": 1, "pairwise_errors": 1, "words": 2, "words_against": 2,
    }  # fmt: skip
    assert [one.get("win") for one in rows] == [1, 1, 1, 0, 0.5, 0.5, None, None]
    assert rows[5] == {"index": 5, "outcome": "inconsistent", "win": 0.5} and rows[6] == {"index": 6}


def test_a_mean_score_is_over_what_was_judged_and_the_rest_is_counted() -> None:
    rows = [row(i, greedy="a " * i + "b") for i in range(5)]
    judged = judged_set(HERE, "", rows, range(5), decoding="greedy", scores=["quality"], against=None)
    said = ["[[8]]", "[[3]]", "[[11]]", None, "[[4]]"]
    summary, lines = tally(judged, dict(zip(judged.questions, said, strict=True)))
    assert summary == {
        "num_examples": 5, "quality": 5.0, "quality_judged": 3, "quality_parse_failures": 1, "quality_errors": 1,
        "words": 3.0,
    }  # fmt: skip
    assert lines == [{"index": 0, "quality": 8}, {"index": 1, "quality": 3}, {"index": 2}, {"index": 3},
                     {"index": 4, "quality": 4}]  # fmt: skip
    nothing, _ = tally(judged, dict.fromkeys(judged.questions))
    assert nothing["quality"] is None and nothing["quality_errors"] == 5


def test_the_estimate_is_1_3_tokens_a_word_and_the_price_per_million() -> None:
    assert num_tokens("one two three four five six seven eight nine ten") == 13
    assert num_tokens("\u6587" * 100) == 75  # no spaces: 300 bytes
    found = estimate(["a b c d e f g h i j"] * 1000, num_cached=5, max_tokens=100, input_price=2.0, output_price=10.0)
    assert (found.num_requests, found.tokens_in, found.tokens_out) == (1000, 13_000, 100_000)
    assert found.cost == pytest.approx(0.026 + 1.0)
    assert "1000 requests to send (5 more" in str(found) and "1.026" in str(found)
    free = estimate(["a"], num_cached=0, max_tokens=1, input_price=None, output_price=1.0)
    assert free.cost is None and "judge.input_price" in str(free)


def test_the_choice_of_examples_depends_on_the_seed_and_the_number_of_rows_only() -> None:
    assert choose(100, 10, seed=1) == choose(100, 10, seed=1) != choose(100, 10, seed=2)
    assert len(set(choose(100, 10, seed=1))) == 10 and choose(5, 10, seed=1) == choose(5, None, seed=1) == list(
        range(5)
    )


def test_evaluations_of_different_prompts_are_not_compared() -> None:
    one, two = [row(0), row(1)], [row(0), row(2)]
    check_same_prompts({Path("a"): one, Path("b"): [dict(line, nll=2.0) for line in one]})
    with pytest.raises(UserError, match="example 1 of a and of b"):
        check_same_prompts({Path("a"): one, Path("b"): two})
    with pytest.raises(UserError, match="a has 2 examples and b 1"):
        check_same_prompts({Path("a"): one, Path("b"): one[:1]})


def test_a_directory_means_its_newest_evaluation_or_the_one_named_and_every_suite_of_it(tmp_path: Path) -> None:
    import os

    for i, name in enumerate(["eval/new", "eval/old", "eval/suites/dolly", "eval/suites/vicuna"]):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "examples.jsonl").write_text("{}\n")
        os.utime(tmp_path / name / "examples.jsonl", (1000 - i, 1000 - i))
    find = evaluation_folders
    assert find(tmp_path, name=None, key="runs") == {"": tmp_path / "eval/new"}
    assert find(tmp_path, name="old", key="runs") == {"": tmp_path / "eval/old"}
    suites = {name: tmp_path / "eval/suites" / name for name in ("dolly", "vicuna")}
    assert find(tmp_path, name="suites", key="runs") == find(tmp_path / "eval/suites", name=None, key="runs") == suites
    with pytest.raises(UserError, match="eval=gone.*new, old, suites"):
        find(tmp_path, name="gone", key="runs")
    with pytest.raises(UserError, match="runs=.*no such folder"):
        find(tmp_path / "gone", name=None, key="runs")
    with pytest.raises(UserError, match="is not the examples of an evaluation"):
        read_examples(tmp_path / "eval/new")


def test_a_line_separator_within_a_text_does_not_split_its_line(tmp_path: Path) -> None:
    line = {"instruction": "one\u2028two\u0085three", "greedy": {"text": "\x1c"}}
    (tmp_path / "examples.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_examples(tmp_path) == [line]
