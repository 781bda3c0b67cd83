"""Keys and passwords that must not reach a record: found in what is typed, taken out of what is written."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

SHORTEST = 12  # a shorter value of a variable is a placeholder, and stands in texts by chance
VARIABLE = re.compile(r"(?i)(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$")
# As their issuers write them: Hugging Face, OpenAI and Anthropic, GitHub, AWS, Google.
KEYS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\b(?:gh[opusr]_|github_pat_)[A-Za-z0-9_]{20,}"
    r"|\bAKIA[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
)
LOGIN = re.compile(r"(?<=://)[^/\s@'\"]+@")  # http://user:password@host


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, in words that do not show it; None when none is found."""
    for name, value in _variables():
        if value in text:
            return f"the value of ${name}"
    if KEYS.search(text):
        return "what looks like a key"
    return "a user name or password in an address" if LOGIN.search(text) else None


def without_secrets(text: str) -> str:
    """The text with every secret that `secret_in` finds replaced by what it was."""
    for name, value in _variables():
        text = text.replace(value, f"[${name}]")
    return LOGIN.sub("[login]@", KEYS.sub("[key]", text))


def first_secret(tree: Any, at: str = "") -> tuple[str, str] | None:
    """(dotted key, kind) of the first secret among the strings of a config; None when there is none."""
    if isinstance(tree, str):
        kind = secret_in(tree)
        return (at, kind) if kind else None
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = (first_secret(value, f"{at}.{name}".lstrip(".")) for name, value in children)
    return next((one for one in found if one), None)


def _variables() -> list[tuple[str, str]]:
    """The longest value first: one may hold another."""
    found = [(name, value) for name, value in os.environ.items() if VARIABLE.search(name) and len(value) >= SHORTEST]
    return sorted(found, key=lambda pair: -len(pair[1]))


class Formatter(logging.Formatter):
    """Log lines, their tracebacks too, without secrets: an error of a library may quote the address it asked."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return without_secrets(super().format(record))
