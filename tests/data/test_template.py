"""Prompts."""

import pytest

from kdrun.data import Example, render_prompt
from kdrun.errors import UserError

PLAIN = Example("Name the planet.", "the red one", ("Mars",))
NO_INPUT = Example("Say hello.", "", ("Hello!",))


def test_alpaca_without_input_is_the_header_of_the_papers():
    assert render_prompt(NO_INPUT, "alpaca") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Say hello.\n"
        "\n"
        "### Response:\n"
    )


def test_alpaca_with_input_has_the_other_header_and_an_input_section():
    assert render_prompt(PLAIN, "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Name the planet.\n"
        "\n"
        "### Input:\n"
        "the red one\n"
        "\n"
        "### Response:\n"
    )


def test_plain_ends_with_a_blank_line_with_and_without_input():
    assert render_prompt(PLAIN, "plain") == "Name the planet.\nthe red one\n\n"
    assert render_prompt(NO_INPUT, "plain") == "Say hello.\n\n"


def test_chat_is_the_tokenizers_own_template_with_the_assistants_turn_opened(bpe):
    bpe.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    try:
        assert render_prompt(PLAIN, "chat", tokenizer=bpe) == (
            "<|user|>Name the planet.\n\nthe red one<eos><|assistant|>"
        )
        assert render_prompt(NO_INPUT, "chat", tokenizer=bpe) == "<|user|>Say hello.<eos><|assistant|>"
    finally:
        bpe.chat_template = None


def test_chat_without_a_template_is_refused(bpe):
    for tokenizer in (bpe, None):
        with pytest.raises(
            UserError, match=r"^data\.template=chat: .* has no chat template; type data\.template=alpaca"
        ):
            render_prompt(PLAIN, "chat", tokenizer=tokenizer)


def test_an_unknown_template_is_refused():
    with pytest.raises(UserError, match=r"^data\.template=vicuna: must be one of plain, alpaca, chat"):
        render_prompt(PLAIN, "vicuna")
