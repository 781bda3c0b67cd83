"""The doctor's questions about text and tokenizers, on tokenizers made for the purpose."""

import json
from dataclasses import replace
from typing import Any

from kdrun.canaries.patient import Patient, by_hand
from kdrun.canaries.texts import response_is_encoded_alike, same_ids, texts_come_back
from kdrun.data.encoding import encode
from kdrun.data.examples import Example
from kdrun.models.scratch import train_tokenizer
from tests.canaries.conftest import EXAMPLES, LIMITS


def with_rows(patient: Patient, tokenizer: Any, examples: list[Example], **limits: Any) -> Patient:
    limits = {**LIMITS, **limits}
    encoded = encode(examples, tokenizer, **limits)
    chosen = [examples[int(i)] for i in encoded.example_index]
    return replace(
        patient, tokenizer=tokenizer, encoded=encoded, numbers=patient.numbers[: len(encoded)],
        hand=by_hand(chosen, tokenizer, **limits),
    )  # fmt: skip


def test_two_tokenizers_of_one_id_map_and_other_merges_are_told_apart(patient: Patient, tokenizer: Any) -> None:
    """`shared_rows` compares the maps, which are the same here."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["merges"] = content["model"]["merges"][:-5]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    assert other.get_vocab() == tokenizer.get_vocab()
    assert same_ids(patient, tokenizer).verdict == "ok"
    finding = same_ids(patient, other)
    assert finding.verdict == "FAIL"
    assert "word" in finding.measured


def test_a_response_that_merges_with_its_prompt_is_a_warning(patient: Patient) -> None:
    """The prompt ends with a blank line, and the tokenizer has a token of a blank line and a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    plain.train_from_iterator(["\n\nword"] * 20, trainer)
    merging = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", pad_token="<end>")
    finding = response_is_encoded_alike(with_rows(patient, merging, EXAMPLES))
    assert (finding.verdict, finding.measured[:6]) == ("warning", "0 of 8")
    assert response_is_encoded_alike(patient).verdict == "ok"


def test_a_tokenizer_that_changes_text_is_a_warning_and_a_cut_response_is_none(patient: Patient) -> None:
    from tokenizers import normalizers

    lower = train_tokenizer(["word"], vocab_size=300)
    assert texts_come_back(with_rows(patient, lower, EXAMPLES, max_tokens=31)).verdict == "ok"
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    finding = texts_come_back(with_rows(patient, lower, [Example("Say", "", ("Word",)), EXAMPLES[0]]))
    assert (finding.verdict, finding.measured[:6]) == ("warning", "1 of 2")


def test_rows_by_hand_are_the_encoders_where_prompts_and_responses_are_cut(patient: Patient) -> None:
    """With special words in the text, which are text."""
    examples = [*EXAMPLES, Example("Say <|endoftext|>", "and this", ("a <|endoftext|> b",))]
    limits = {"template": "alpaca", "max_prompt_tokens": 9, "max_tokens": 16}
    encoded = encode(examples, patient.tokenizer, overlong="truncate", **limits)
    hand = by_hand(examples, patient.tokenizer, **limits)
    assert encoded.num_cut_prompts == 9 and encoded.num_cut_responses > 1
    assert [(encoded.row(i)[0].tolist(), encoded.row(i)[1]) for i in range(9)] == [(r.ids, r.num_prompt) for r in hand]
