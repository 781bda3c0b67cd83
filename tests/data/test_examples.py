"""Examples and their division by hash."""

import hashlib
import random

import pytest

from kdrun.data import Example, split_by_hash
from kdrun.data.examples import count_shared_prompts, fill_splits


def numbered(count):
    return [Example(f"Add {i} and {i + 1}.", "", (str(2 * i + 1),)) for i in range(count)]


def test_response_is_the_first_reference():
    assert Example("Say hello.", "", ("Hello!", "Hi!")).response == "Hello!"


def test_a_split_is_the_hash_bucket_of_the_prompt():
    # Worked apart from the code: sha256 as one whole number, as a share of its range.
    example = Example("Name the character U+2593.", "\u2593", ("DARK SHADE",))
    share = int(hashlib.sha256("Name the character U+2593.\0\u2593".encode()).hexdigest(), 16) / 2**256
    percent = int(100 * share)
    assert split_by_hash([example], 0, test_percent=percent).train == [example]
    assert split_by_hash([example], 0, test_percent=percent + 1).test == [example]
    assert split_by_hash([example], 1, test_percent=percent).valid == [example]


def test_every_example_lands_in_exactly_one_split_near_its_share():
    examples = numbered(20_000)
    splits = split_by_hash(examples, valid_percent=5, test_percent=10)
    assert sorted(splits.train + splits.valid + splits.test, key=repr) == sorted(examples, key=repr)
    # Binomial: 1000 and 2000 expected, standard deviations 31 and 42; six of them.
    assert abs(len(splits.valid) - 1000) < 186
    assert abs(len(splits.test) - 2000) < 252


def test_a_split_depends_neither_on_order_nor_on_the_other_rows():
    examples = numbered(500)
    shuffled = random.Random(7).sample(examples, len(examples))
    assert set(split_by_hash(examples).valid) == set(split_by_hash(shuffled).valid)
    assert set(split_by_hash(examples[:250]).valid) == set(split_by_hash(examples).valid) & set(examples[:250])


def test_a_split_keeps_the_order_of_the_examples():
    examples = numbered(300)
    train = split_by_hash(examples).train
    assert train == [example for example in examples if example in set(train)]


def test_duplicate_prompts_never_straddle_splits():
    questions = [(f"Question {i}", "context" if i % 2 else "") for i in range(400)]
    examples = [Example(*question, (f"answer {n}",)) for question in questions for n in range(3)]
    random.Random(1).shuffle(examples)
    splits = split_by_hash(examples)
    keys = [{example.prompt_key for example in part} for part in (splits.train, splits.valid, splits.test)]
    assert all(keys)
    assert [len(keys[a] & keys[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]


def test_the_same_instruction_with_another_input_is_another_prompt():
    examples = [Example("Name it.", chr(code), ("x",)) for code in range(0x4E00, 0x5000)]
    splits = split_by_hash(examples)
    assert all([splits.train, splits.valid, splits.test])


@pytest.mark.parametrize(("valid", "test"), [(-1, 5), (5, -1), (50, 50), (0, 100)])
def test_percentages_that_leave_no_train_are_refused(valid, test):
    with pytest.raises(ValueError, match="valid_percent"):
        split_by_hash(numbered(3), valid, test_percent=test)


def test_only_missing_splits_are_carved():
    examples, held_out = numbered(400), numbered(3)
    splits = fill_splits(examples, held_out, None)
    assert splits.valid == held_out
    assert splits.test == split_by_hash(examples).test
    assert len(splits.train) + len(splits.test) == 400
    assert fill_splits(examples, held_out, held_out).train == examples


def test_shared_prompts_are_counted_by_prompt_not_by_answer():
    train = [Example("a", "", ("1",)), Example("b", "x", ("2",))]
    held_out = [Example("a", "", ("other",)), Example("b", "", ("2",)), Example("a", "", ("1",))]
    assert count_shared_prompts(held_out, train) == 2
