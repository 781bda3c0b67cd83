"""The prompt that an example becomes: everything the model reads before it answers."""

from typing import Any

from kdrun.data.examples import Example
from kdrun.errors import UserError

TEMPLATES = ("plain", "alpaca", "chat")

_ALPACA_HEADER = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_ALPACA_HEADER_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)


def render_prompt(example: Example, template: str, *, tokenizer: Any = None) -> str:
    """The prompt as text. The response follows it directly, with nothing between.

    - `plain`: instruction, newline, input if there is one, blank line. Few tokens; the blank line ends the prompt.
    - `alpaca`: as in MiniLLM (Gu et al., arXiv 2306.08543; tools/process_data_dolly.py): ends with "### Response:" and
      one newline. The form without an input is used when the input is empty.
    - `chat`: the tokenizer's own template with one user turn (instruction, blank line, input) and its opening of the
      assistant's turn, special tokens included.

    Raises UserError for an unknown template and for `chat` with a tokenizer that has none.
    """
    match template:
        case "plain":
            return _joined(example, "\n") + "\n\n"
        case "alpaca":
            return _alpaca(example)
        case "chat":
            return _chat(example, tokenizer)
    raise UserError(f"data.template={template}: must be one of {', '.join(TEMPLATES)}; type data.template=alpaca")


def _joined(example: Example, separator: str) -> str:
    return f"{example.instruction}{separator}{example.input}" if example.input else example.instruction


def _alpaca(example: Example) -> str:
    instruction = f"### Instruction:\n{example.instruction}\n\n"
    if not example.input:
        return f"{_ALPACA_HEADER}{instruction}### Response:\n"
    return f"{_ALPACA_HEADER_WITH_INPUT}{instruction}### Input:\n{example.input}\n\n### Response:\n"


def _chat(example: Example, tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(
            f"data.template=chat: the tokenizer {getattr(tokenizer, 'name_or_path', '') or '(none given)'} has no chat "
            "template; type data.template=alpaca, or choose a pair whose tokenizer has one"
        )
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": _joined(example, "\n\n")}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # transformers renders in a sandbox, which a template may try to leave
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"data.template=chat: the tokenizer's own template fails ({reason})") from error
