"""What the groups that name an OpenAI-compatible endpoint share."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

# Capitals in short parts, as names of environment variables are and keys are not.
VARIABLE = re.compile(r"[A-Z][A-Z0-9]{0,14}(_[A-Z0-9]{1,15})*")


def checked_variable(value: Any, *, key: str) -> Any:
    """The name of an environment variable, or null; ValueError for what may be the key itself, which is not shown."""
    if value is not None and not (isinstance(value, str) and VARIABLE.fullmatch(value)):
        raise ValueError(
            f"{key}: must be the name of an environment variable that holds the key, in capitals, or null, "
            f"and what was typed (not shown here) is none; type for example {key}=OPENAI_API_KEY"
        )
    return value


def checked_address(value: str, *, key: str, path: str) -> str:
    """An address up to `path`; ValueError for one with a password or query in it, which is not shown."""
    example = f"type for example {key}=http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(value)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        plain = False
    if re.search(r"[@?#\s]", value):
        raise ValueError(
            f"{key}: must hold no user name, password, query or space (not shown here); a key comes from the "
            f"environment variable that {key.partition('.')[0]}.key_env names; {example}"
        )
    if not plain or parts.path.rstrip("/").endswith(path):
        raise ValueError(f"{key}={value}: must be an address up to {path}, without it; {example}")
    return value.rstrip("/")
