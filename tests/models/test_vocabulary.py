"""One tokenizer or none: padded heads are cut, other tokenizers refused with the first id that differs."""

import pytest

from kdrun.errors import UserError
from kdrun.models.scratch import train_tokenizer
from kdrun.models.vocabulary import shared_rows

ONE = train_tokenizer(["a first text of some words"] * 3, vocab_size=270)
SAME = train_tokenizer(["a first text of some words"] * 3, vocab_size=270)
OTHER = train_tokenizer(["entirely different language here"] * 3, vocab_size=270)


def test_heads_padded_to_different_widths_are_cut_to_the_shared_rows() -> None:
    assert shared_rows(ONE, SAME, teacher_rows=320, student_rows=288) == 288
    assert shared_rows(ONE, SAME, teacher_rows=len(ONE), student_rows=len(ONE)) == len(ONE)


def test_another_tokenizer_is_refused_with_the_first_id_that_differs() -> None:
    with pytest.raises(UserError, match=r"different tokenizers: id \d+ is '.*' to the teacher and '.*' to the student"):
        shared_rows(ONE, OTHER, teacher_rows=300, student_rows=300)


def test_a_head_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="fewer than the tokenizer"):
        shared_rows(ONE, SAME, teacher_rows=300, student_rows=len(ONE) - 1)


def test_tokens_that_only_the_student_has_are_refused() -> None:
    more = train_tokenizer(["a first text of some words"] * 3, vocab_size=270)
    more.add_tokens(["<extra>"])
    with pytest.raises(UserError, match="tokens more than the teacher"):
        shared_rows(ONE, more, teacher_rows=300, student_rows=300)
