"""What the student writes in its own training: the distribution, the ends, and what writing leaves as it was."""

import json
import random
from typing import Any

import numpy as np
import torch

from kdrun.data.encoding import EncodedSet
from kdrun.generation.reading import Mixture
from kdrun.rollouts.writer import Written
from tests.training.conftest import END, tiny

from .conftest import texts_of, writer_of


def drawn_by_hand(student: Any, prompt: list[int], *, stream: list[int], limit: int) -> list[int]:
    """Token after token by the inverse of the cumulated distribution, over the whole text, without a cache."""
    ids, uniforms = list(prompt), np.random.default_rng(stream).random(limit)
    for uniform in uniforms:
        with torch.no_grad():
            q_V = student(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        ids.append(int(torch.searchsorted(q_V.cumsum(0), float(uniform), right=True)))
        if ids[-1] == END:
            break
    return ids


def test_texts_are_drawn_from_the_students_own_distribution_end_with_eos_only_where_it_was_drawn_and_fit(
    student: Any, rows: EncodedSet
) -> None:
    """EOS, which pads too, is likely here: some texts end with it, at once or later, others are cut without one."""
    with torch.no_grad():
        student.transformer.wte.weight[END] *= 3
    chosen, found, ends = list(range(16)), [], set()
    written = writer_of(student, max_tokens=9).write(rows, chosen, step=5)
    for row, text in zip(chosen, texts_of(written), strict=True):
        prompt = rows.prompt(row).tolist()
        limit = min(6, 9 - len(prompt))
        assert text == drawn_by_hand(student, prompt, stream=[3, 5, row], limit=limit)
        assert len(prompt) < len(text) <= 9
        ends.add((text[-1] == END, len(text) == len(prompt) + limit))
        found.append(len(prompt))
    assert written.prompt_lengths.tolist() == found
    assert written.example_index.tolist() == rows.example_index[chosen].tolist()
    assert {(True, False), (False, True)} <= ends, "some were ended, some cut"


def test_a_text_does_not_depend_on_how_the_rows_are_split_over_ranks_nor_on_their_order(
    student: Any, rows: EncodedSet
) -> None:
    writer = writer_of(student)
    whole = dict(zip(range(12), texts_of(writer.write(rows, range(12), step=1)), strict=True))
    for ranks in (2, 5):
        for rank in range(ranks):
            mine = np.arange(12)[::-1][rank::ranks]
            assert texts_of(writer.write(rows, mine, step=1)) == [whole[row] for row in mine]
    assert texts_of(writer.write(rows, range(12), step=2)) != list(whole.values())
    assert len(writer.write(rows, [], step=1)) == 0, "a rank may have no row"


def test_dropout_is_off_while_writing_and_every_module_gets_its_mode_back(rows: EncodedSet) -> None:
    plain, dropping = tiny(1), tiny(1)
    for module in dropping.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    dropping.train()
    dropping.transformer.h[0].eval()  # a frozen part
    modes = [module.training for module in dropping.modules()]
    written = writer_of(dropping).write(rows, range(8), step=0)
    assert texts_of(written) == texts_of(writer_of(plain.eval()).write(rows, range(8), step=0))
    assert [module.training for module in dropping.modules()] == modes


def test_writing_neither_reads_nor_moves_any_global_random_state(student: Any, rows: EncodedSet) -> None:
    texts = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        texts.append(texts_of(writer_of(student).write(rows, range(6), step=0)))
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert texts[0] == texts[1]


def test_texts_are_those_of_the_current_weights(student: Any, rows: EncodedSet) -> None:
    writer = writer_of(student)
    before = texts_of(writer.write(rows, range(6), step=0))
    with torch.no_grad():
        student.transformer.wte.weight.copy_(tiny(9).transformer.wte.weight)
    changed = texts_of(writer.write(rows, range(6), step=0))
    assert changed == texts_of(writer_of(student).write(rows, range(6), step=0)) != before


def test_no_token_is_drawn_that_the_teacher_does_not_have(student: Any, teacher: Any, rows: EncodedSet) -> None:
    """A teacher of share 0 writes nothing, and keeps the student within the shared rows."""
    shared = 12
    alone, bounded = (
        writer_of(student, mixed_with=mixed_with).write(rows, range(12), step=0)
        for mixed_with in (None, Mixture(teacher, 0.0, shared))
    )
    answers = [text[p:] for s in (alone, bounded) for text, p in zip(texts_of(s), s.prompt_lengths, strict=True)]
    assert max(map(max, answers[:12])) >= shared > max(map(max, answers[12:]))


def test_the_report_counts_texts_tokens_with_eos_and_ends_and_begins_anew(student: Any, rows: EncodedSet) -> None:
    writer = writer_of(student)
    assert writer.observe(1.0) == {}
    sets = [writer.write(rows, part, step=0) for part in (range(5), range(5, 8))]
    writer.load_state_dict(json.loads(json.dumps(writer.state_dict())))
    answers = [text[length:] for s in sets for text, length in zip(texts_of(s), s.prompt_lengths, strict=True)]
    seconds = writer.written.seconds
    values = writer.observe(10 * seconds)
    assert values["generated_length"] == sum(map(len, answers)) / 8
    assert values["generated_finished_share"] == sum(answer[-1] == END for answer in answers) / 8
    assert np.isclose(values["generating_share"], 0.1)
    assert np.isclose(values["generated_tokens_per_s"], sum(map(len, answers)) / seconds)
    assert writer.written == Written() and writer.observe(1.0) == {}
