"""Examples as token ids."""

import dataclasses
import logging
import re
import time

import numpy as np
import pytest

from kdrun.data import Example, render_prompt
from kdrun.data.encoding import encode
from kdrun.data.jsonl import read_jsonl
from kdrun.data.unicode_names import unicode_names
from kdrun.errors import UserError

EXAMPLES = [
    Example("name the letter", "a", ("say a", "or alpha")),
    Example("say", "", ("what it does",)),
    Example("name the letter after the letter after the letter", "b", ("d",)),
]


def encode_plain(examples, tokenizer, **changes):
    settings = {"template": "plain", "max_prompt_tokens": 200, "max_tokens": 400} | changes
    return encode(examples, tokenizer, **settings)


def test_a_row_is_prompt_then_first_reference_then_eos(bpe):
    encoded = encode_plain(EXAMPLES, bpe)
    assert len(encoded) == 3
    for i, example in enumerate(EXAMPLES):
        ids, prompt_length = encoded.row(i)
        assert ids.dtype == np.int32
        assert ids.tolist()[:prompt_length] == bpe.encode(render_prompt(example, "plain"))
        assert ids.tolist()[prompt_length:] == [*bpe.encode(example.response), bpe.eos_token_id]
        assert encoded.prompt(i).tolist() == ids.tolist()[:prompt_length]
    assert encoded.example_index.tolist() == [0, 1, 2]
    assert (encoded.num_dropped, encoded.num_cut_prompts, encoded.num_cut_responses) == (0, 0, 0)


def test_scored_tokens_are_those_of_the_responses_and_one_eos_each(bpe):
    encoded = encode_plain(EXAMPLES, bpe)
    assert encoded.num_scored_tokens == sum(len(bpe.encode(example.response)) + 1 for example in EXAMPLES)
    assert encoded.lengths.tolist() == [len(encoded.row(i)[0]) for i in range(3)]


def test_gpt2_gets_no_bos_and_exactly_one_eos(gpt2):
    ids, prompt_length = encode(
        [Example("Say hi.", "", ("Hi",))], gpt2, template="alpaca", max_prompt_tokens=256, max_tokens=512
    ).row(0)
    # From the GPT-2 vocabulary: "Hi" is 17250, "\n" 198, EOS 50256; the prompt begins with "Below" 21106.
    assert ids[0] == 21106
    assert ids[prompt_length - 1] == 198
    assert ids[prompt_length:].tolist() == [17250, 50256]
    assert (ids == 50256).sum() == 1


def test_tinyllama_gets_no_bos_either(tinyllama):
    ids, _ = encode_plain([Example("Say hi.", "", ("Hi",))], tinyllama).row(0)
    assert tinyllama.bos_token_id not in ids
    assert ids[-1] == tinyllama.eos_token_id


def test_end_of_text_written_in_an_example_is_text_not_eos(bpe, gpt2):
    for tokenizer, word in ((bpe, "<eos>"), (gpt2, "<|endoftext|>")):
        ids, _ = encode_plain([Example(f"Say {word} now", "", (f"{word} and on",))], tokenizer).row(0)
        assert (ids == tokenizer.eos_token_id).sum() == 1
        assert tokenizer.decode(ids) == f"Say {word} now\n\n{word} and on{word}"


def test_the_special_tokens_of_a_chat_template_are_special(bpe):
    bpe.chat_template = "{% for m in messages %}<eos>{{ m['content'] }}<eos>{% endfor %}"
    try:
        ids, prompt_length = encode_plain([Example("say", "", ("a <eos>",))], bpe, template="chat").row(0)
    finally:
        bpe.chat_template = None
    assert ids[:prompt_length].tolist() == [bpe.eos_token_id, *bpe.encode("say"), bpe.eos_token_id]
    assert (ids[prompt_length:] == bpe.eos_token_id).sum() == 1


def test_dolly_rows_decode_to_the_prompt_and_response_they_came_from(gpt2, dolly_path):
    examples = read_jsonl(dolly_path)
    encoded = encode(examples, gpt2, template="alpaca", max_prompt_tokens=256, max_tokens=100_000)
    for i in range(len(encoded)):
        ids, prompt_length = encoded.row(i)
        example = examples[encoded.example_index[i]]
        assert gpt2.decode(ids[:prompt_length]) == render_prompt(example, "alpaca")
        assert gpt2.decode(ids[prompt_length:]) == f"{example.response}<|endoftext|>"


def test_dolly_rows_equal_minillms_joint_encoding_but_where_the_boundary_merges(gpt2, dolly_path):
    # MiniLLM (tools/process_data_dolly.py): full = encode(prompt + response) + [eos], cut at len(encode(prompt)).
    examples = read_jsonl(dolly_path)
    encoded = encode(examples, gpt2, template="alpaca", max_prompt_tokens=256, max_tokens=100_000)
    different = []
    for i in range(len(encoded)):
        example = examples[encoded.example_index[i]]
        joint = gpt2.encode(render_prompt(example, "alpaca") + example.response, verbose=False)
        if encoded.row(i)[0].tolist() != [*joint, 50256]:
            different.append(example.response)
    # The prompt ends with a newline, which merges only with a response that begins with one.
    assert all(response.startswith("\n") for response in different)
    assert len(different) < 10


def test_dolly_prompts_over_the_limit_are_dropped_and_counted_as_encoded_one_by_one(gpt2, dolly_path):
    examples = read_jsonl(dolly_path)
    encoded = encode(examples, gpt2, template="alpaca", max_prompt_tokens=100, max_tokens=200)
    lengths = [len(gpt2.encode(render_prompt(example, "alpaca"), verbose=False)) for example in examples]
    kept = [i for i, length in enumerate(lengths) if length <= 100]
    assert encoded.example_index.tolist() == kept
    assert encoded.num_dropped == len(examples) - len(kept) > 0
    responses = [len(gpt2.encode(examples[i].response, verbose=False)) for i in kept]
    assert encoded.num_cut_responses == sum(
        lengths[i] + length + 1 > 200 for i, length in zip(kept, responses, strict=True)
    )


def test_overlong_prompts_are_dropped_and_counted_and_the_rest_keep_their_places(bpe, caplog):
    limit = len(bpe.encode(render_prompt(EXAMPLES[0], "plain")))
    with caplog.at_level(logging.INFO, logger="kdrun.data"):
        encoded = encode_plain([EXAMPLES[2], *EXAMPLES], bpe, max_prompt_tokens=limit)
    assert encoded.num_dropped == 2
    assert encoded.example_index.tolist() == [1, 2]
    assert "dropped 2 of 4 examples" in caplog.text


def test_truncation_keeps_the_end_of_the_prompt_and_counts(bpe):
    example = Example("name the letter " * 20, "", ("a",))
    encoded = encode(
        [example, EXAMPLES[1]], bpe, template="alpaca", max_prompt_tokens=40, max_tokens=80, overlong="truncate"
    )
    assert len(encoded) == 2
    assert encoded.num_dropped == 0
    assert encoded.num_cut_prompts == 2  # the header alone is longer than 40 tokens of this tokenizer
    for i in range(2):
        assert len(encoded.prompt(i)) == 40
        assert bpe.decode(encoded.prompt(i)).endswith("### Response:\n")


@pytest.mark.parametrize(("room", "cut", "ends_with_eos"), [(0, 0, True), (1, 1, False), (3, 1, False)])
def test_a_response_cut_at_max_tokens_has_no_eos(bpe, room, cut, ends_with_eos):
    example = Example("say", "", ("what it does and what it names",))
    whole = encode_plain([example], bpe)
    prompt_length, length = int(whole.prompt_lengths[0]), int(whole.lengths[0])
    encoded = encode_plain([example], bpe, max_prompt_tokens=prompt_length, max_tokens=length - room)
    assert encoded.ids.tolist() == whole.ids.tolist()[: length - room]
    assert encoded.num_cut_responses == cut
    assert (encoded.ids[-1] == bpe.eos_token_id) == ends_with_eos
    assert encoded.num_scored_tokens == length - room - prompt_length


def test_an_empty_response_is_eos_alone(bpe):
    ids, prompt_length = encode_plain([Example("say", "", ("",))], bpe).row(0)
    assert ids[prompt_length:].tolist() == [bpe.eos_token_id]


def test_a_subset_holds_the_chosen_rows_in_their_order(bpe):
    encoded = encode_plain(EXAMPLES, bpe)
    chosen = encoded.subset([2, 0])
    assert len(chosen) == 2
    assert chosen.example_index.tolist() == [2, 0]
    for i, origin in enumerate([2, 0]):
        assert chosen.row(i)[0].tolist() == encoded.row(origin)[0].tolist()
        assert chosen.row(i)[1] == encoded.row(origin)[1]
    assert chosen.num_scored_tokens == sum(len(encoded.row(i)[0]) - encoded.row(i)[1] for i in (2, 0))
    assert encoded.subset(np.arange(3)).fingerprint() == encoded.fingerprint()
    assert len(encoded.subset([])) == 0


def test_the_fingerprint_changes_with_any_array_and_with_nothing_else(bpe):
    encoded = encode_plain(EXAMPLES, bpe)
    assert encoded.fingerprint() == encode_plain(EXAMPLES, bpe).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", encoded.fingerprint())
    changed = []
    for name in ("ids", "offsets", "prompt_lengths", "example_index"):
        array = getattr(encoded, name).copy()
        array[1] += 1
        changed.append(dataclasses.replace(encoded, **{name: array}).fingerprint())
    changed.append(encoded.subset([1, 0, 2]).fingerprint())
    changed.append(encoded.subset([0, 1]).fingerprint())
    assert len({encoded.fingerprint(), *changed}) == 7


def test_batches_of_tokenisation_leave_no_seam(bpe):
    examples = [Example(f"say {i}", "", (str(i),)) for i in range(4100)]
    encoded = encode_plain(examples, bpe)
    assert len(encoded) == 4100
    for i in (0, 4095, 4096, 4099):
        assert bpe.decode(encoded.row(i)[0]) == f"say {i}\n\n{i}<eos>"


def test_the_unicode_set_is_encoded_in_seconds(bpe):
    examples = unicode_names()
    start = time.process_time()
    encoded = encode_plain(examples, bpe)
    assert time.process_time() - start < 20  # 2 to 3 s of both cores measured
    assert len(encoded) == len(examples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_prompt_tokens": 1}, r"^data\.max_prompt_tokens=1: every prompt of 3 examples is longer; type"),
        ({"max_prompt_tokens": 0}, r"^data\.max_prompt_tokens=0: must be at least 1"),
        ({"max_prompt_tokens": 400}, r"^data\.max_tokens=400: must be above data\.max_prompt_tokens=400"),
        ({"overlong": "split"}, r"^data\.overlong=split: must be one of drop, truncate"),
        ({"template": "vicuna"}, r"^data\.template=vicuna: must be one of"),
    ],
)
def test_settings_that_leave_nothing_are_refused(bpe, changes, message):
    with pytest.raises(UserError, match=message):
        encode_plain(EXAMPLES, bpe, **changes)


def test_no_examples_and_a_tokenizer_without_eos_are_refused(bpe):
    with pytest.raises(UserError, match="no examples to encode; choose another with data=NAME"):
        encode_plain([], bpe)
    bpe.eos_token = None
    try:
        with pytest.raises(UserError, match="has no end-of-sequence token"):
            encode_plain(EXAMPLES, bpe)
    finally:
        bpe.eos_token = "<eos>"
