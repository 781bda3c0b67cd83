"""Generated texts as rows to learn from, by hand."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kdrun.data.batch import make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.generation.answers import answer_limits, answered
from kdrun.generation.generate import Generation, Sampling, generate

EOS, PAD = 9, 8
# Three rows, of the examples 4, 6 and 7: [1 2 | 3 4 EOS], [5 | 6 EOS], [1 1 1 | 2].
ENCODED = EncodedSet(
    ids=np.array([1, 2, 3, 4, EOS, 5, 6, EOS, 1, 1, 1, 2], dtype=np.int32),
    offsets=np.array([0, 5, 8, 12], dtype=np.int64),
    prompt_lengths=np.array([2, 1, 3], dtype=np.int32),
    example_index=np.array([4, 6, 7], dtype=np.int32),
    num_dropped=5,
)
FINISHED, CUT, EMPTY = Generation([7, 6], finished=True), Generation([3, 3], finished=False), Generation([], True)


def test_a_row_is_its_prompt_and_the_text_with_eos_only_where_the_model_emitted_it():
    found = answered(ENCODED, [2, 0, 2, 1], [FINISHED, CUT, EMPTY, CUT], eos_id=EOS)
    rows = [found.row(i) for i in range(len(found))]
    assert [(ids.tolist(), num_prompt) for ids, num_prompt in rows] == [
        ([1, 1, 1, 7, 6, EOS], 3),
        ([1, 2, 3, 3], 2),
        ([1, 1, 1, EOS], 3),
        ([5, 3, 3], 1),
    ]
    assert found.example_index.tolist() == [7, 4, 7, 6]
    assert found.num_scored_tokens == 3 + 2 + 1 + 2
    assert found.num_dropped == 5
    for name in ("ids", "offsets", "prompt_lengths", "example_index"):
        assert getattr(found, name).dtype == getattr(ENCODED, name).dtype


def test_a_batch_of_them_scores_every_token_from_the_first_and_no_padding():
    found = answered(ENCODED, [2, 0, 1], [EMPTY, FINISHED, CUT], eos_id=EOS)
    batch = make_batch(found, range(3), pad_id=PAD, device="cpu")
    assert batch.rows.tolist() == [2, 0, 1]
    (group,) = batch.groups
    assert group.ids_BT.tolist() == [[5, 3, 3, PAD, PAD], [1, 1, 1, EOS, PAD], [1, 2, 7, 6, EOS]]
    assert batch.target_N.tolist() == [3, 3, EOS, 7, 6, EOS]  # what the texts are: labels shifted once
    assert group.index_N.tolist() == [0, 1, 5 + 2, 10 + 1, 10 + 2, 10 + 3]  # each predicted one position before
    assert batch.num_scored == 6


def test_no_row_and_another_number_of_texts():
    assert len(answered(ENCODED, [], [], eos_id=EOS)) == 0
    with pytest.raises(ValueError, match="zip"):
        answered(ENCODED, [0, 1], [CUT], eos_id=EOS)


def test_limits_leave_room_for_the_prompt_and_are_kept_by_generate():
    assert answer_limits(ENCODED, [0, 2, 1], max_new_tokens=4, max_tokens=5) == [3, 2, 4]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, n_positions=5))
    rows = [0, 1, 2] * 100
    limits = answer_limits(ENCODED, rows, max_new_tokens=4, max_tokens=5)
    texts = generate(
        model, [ENCODED.prompt(i).tolist() for i in rows], Sampling(4), eos_id=EOS, pad_id=PAD, batch_size=64, seed=0,
        limits=limits,
    )  # fmt: skip
    lengths = answered(ENCODED, rows, texts, eos_id=EOS).lengths
    assert lengths.max() == 5
    # some end by EOS at the last place there is, and that place is within the limit
    assert any(text.finished and length == 5 for text, length in zip(texts, lengths, strict=True))
