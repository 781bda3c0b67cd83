"""An OpenAI-compatible server (vLLM, SGLang) that writes the teacher's text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdrun.data.encoding import EncodedSet, tokenize
from kdrun.errors import UserError
from kdrun.generation.endpoint import Body, Endpoint, Keys, ask_all
from kdrun.generation.generate import Generation, Sampling
from kdrun.rollouts.teacher_text import Advance, Write

KEYS = Keys("rollout.server", "rollout.server_model", "rollout.key_env", "timeout_s")


def server_writer(
    endpoint: Endpoint,
    rows: EncodedSet,
    tokenizer: Any,
    sampling: Sampling,
    *,
    seed: int,
    limits: Sequence[int],
    say: Callable[[str], None],
) -> Write:
    """Texts of the server, encoded with the run's tokenizer: the seed of sample s of row i is made of (seed, s, i).

    Prompts are sent as token ids when the server means the same text by them, else as text, which is said.

    Args:
        endpoint: of path "completions".

    Raises:
        UserError: when the server does not answer.
    """
    given = _prompts(endpoint, rows, tokenizer, say)

    def write(block: Sequence[int], sample: int, advance: Advance) -> list[Generation]:
        texts: dict[int, Generation] = {}

        def keep(row: int, reply: tuple[list[int], bool]) -> None:
            ids, finished = reply
            is_whole = len(ids) + finished <= limits[row]  # encoded anew, a text may have come out longer
            texts[row] = Generation(ids[: limits[row]], finished and is_whole)
            advance(1, len(ids))

        def body(row: int) -> Body:
            own_seed = np.random.SeedSequence([seed, sample, row]).generate_state(1)[0] >> 1
            # What is left out, the server takes from the model's generation_config.json.
            off = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
            return {
                "model": endpoint.model, "prompt": given(row), "n": 1, "max_tokens": limits[row], "seed": int(own_seed),
                "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1, **off,
            }  # fmt: skip

        bodies = {row: body(row) for row in block}
        errors = ask_all(endpoint, bodies, read=lambda content: _text(content, endpoint, tokenizer), keep=keep)
        if errors:
            raise UserError(
                f"{KEYS.url}={endpoint.base_url}: {len(errors)} of {len(bodies)} requests failed, the last with: "
                f"{list(errors.values())[-1]}; whole blocks of texts are kept, and the same words go on from them"
            )
        return [texts[row] for row in block]

    return write


def _text(content: Any, endpoint: Endpoint, tokenizer: Any) -> tuple[list[int], bool]:
    """Ids of a completion without EOS, and whether EOS followed."""
    choice = content["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):  # filtered, aborted
        raise ValueError
    (ids,) = tokenize([endpoint.redact(choice["text"])], tokenizer, parse_special=False)
    return ids.tolist(), choice["finish_reason"] == "stop"


def _prompts(
    endpoint: Endpoint, rows: EncodedSet, tokenizer: Any, say: Callable[[str], None]
) -> Callable[[int], list[int] | str]:
    """A function row -> prompt, as ids or as text: the server is asked to repeat the longest prompt, given as ids."""

    def spelled(row: int) -> str:
        return str(tokenizer.decode(rows.prompt(row), clean_up_tokenization_spaces=False))

    longest = int(rows.prompt_lengths.argmax())
    said: list[str] = []
    body = {"model": endpoint.model, "prompt": rows.prompt(longest).tolist(), "max_tokens": 1, "echo": True}
    errors = ask_all(
        endpoint, {longest: body}, read=lambda content: str(content["choices"][0]["text"]),
        keep=lambda _, text: said.append(text),
    )  # fmt: skip
    if errors and not errors[longest].startswith("HTTP 4"):  # 400: ids that it does not have, or none at all
        raise UserError(f"{KEYS.url}={endpoint.base_url}: {errors[longest]}")
    if any(_letters(text).startswith(_letters(spelled(longest))) for text in said):
        return lambda row: list(rows.prompt(row).tolist())
    say(f"teacher's text: {endpoint.model} means other text by the student's token ids, so it is given text")
    return spelled


def _letters(text: str) -> str:
    """The text without spaces, which tokenizers' decoders treat differently."""
    return "".join(text.split())
