"""Whether two models speak one vocabulary, and how many of its rows they share."""

from __future__ import annotations

from typing import Any

from kdrun.errors import UserError


def shared_rows(teacher_tokenizer: Any, student_tokenizer: Any, *, teacher_rows: int, student_rows: int) -> int:
    """The number of vocabulary rows that both heads have, after comparing the two id maps.

    One tokenizer with heads padded to different widths (Qwen2.5: 152,064 and 151,936 rows) is cut to the smaller;
    nothing is padded with zeros and no logit is copied.

    Raises:
        UserError: when an id means another token to the student, with the first one.
    """
    teacher_ids, student_ids = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    if teacher_ids != student_ids:
        by_id = {index: token for token, index in student_ids.items()}
        for token, index in sorted(teacher_ids.items(), key=lambda item: item[1]):
            if by_id.get(index) != token:
                raise UserError(
                    f"pair: teacher and student have different tokenizers: id {index} is {token!r} to the teacher and "
                    f"{by_id.get(index)!r} to the student; their distributions cannot be compared token by token. "
                    "Choose two models of one tokenizer"
                )
        extra = sorted(set(by_id) - set(teacher_ids.values()))
        raise UserError(
            f"pair: the student's tokenizer has {len(extra)} tokens more than the teacher's (first id {extra[0]})"
        )
    if teacher_tokenizer.eos_token_id != student_tokenizer.eos_token_id:
        raise UserError(
            f"pair: the teacher ends a text with id {teacher_tokenizer.eos_token_id}, "
            f"the student with id {student_tokenizer.eos_token_id}; responses would not end alike"
        )
    rows = min(teacher_rows, student_rows)
    if rows < len(teacher_ids):
        raise UserError(f"pair: a head has {rows} rows, fewer than the tokenizer's {len(teacher_ids)} tokens")
    return rows
