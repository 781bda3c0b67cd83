"""The words of a command line: flags, overrides, short keys, quoting. No Hydra here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdrun.config import SHORT_KEYS
from kdrun.errors import UserError


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags (with their values) and overrides; Hydra's parser wants all flags first."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        if takes_value or (word.startswith("-") and not re.match(r"^-+[\d.]", word)):
            flags.append(word)
            takes_value = not takes_value and word in (
                "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p",
            )  # fmt: skip
        else:
            overrides.append(word)
    return flags, overrides


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line, where argparse would print its usage and leave."""
        raise UserError(message)


def read_flags(flags: Sequence[str]) -> argparse.Namespace:
    """The flags that decide what is composed; the rest is Hydra's business.

    Raises:
        UserError: for one that lacks its value, or has one too many.
    """
    parser = _Flags(add_help=False, allow_abbrev=False)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    return parser.parse_known_args(list(flags))[0]


def expand_short_key(word: str, command: str = "train") -> str:
    """mu=0.5 -> loss.mu=0.5, for every parameter of every loss; cache.topk=5 -> teacher.topk=5; others unchanged.

    In evaluate, teacher=PATH -> teacher_path=PATH: to Hydra, teacher= is the config group of train.
    """
    if command == "evaluate" and key_of(word) == "teacher":
        return word.replace("teacher", "teacher_path", 1)
    word = re.sub(r"^(\+\+|\+|~|)cache\.(?=[a-z]+(=|$))", r"\1teacher.", word)
    return re.sub(rf"^(\+\+|\+|~|)(?=({'|'.join(SHORT_KEYS)})(=|$))", r"\1loss.", word)


def key_of(word: str) -> str:
    """The key of an override: loss.mu in `++loss.mu=0.5`."""
    return word.split("=", 1)[0].lstrip("+~")


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """The last value given to a key on the command line, unquoted."""
    values = [word.split("=", 1)[1].strip("'\"") for word in overrides if "=" in word and key_of(word) == key]
    return values[-1] if values else None


def in_folder(words: Sequence[str], folder: Path, *, key: str = "hydra.run.dir") -> list[str]:
    """The words, with this folder as the only one for what the command writes."""
    return [*(word for word in words if key_of(word) != key), f"{key}={quote(str(folder))}"]


def shorten(text: str) -> str:
    """The text, its middle left out where it is long: a line of the terminal, and not a page."""
    return text if len(text) <= 1000 else f"{text[:700]} ... {text[-250:]}"


def quote(value: Any) -> str:
    """A value as Hydra's grammar wants it."""
    if isinstance(value, str):
        # Hydra's rule: a backslash is special only before a quote, so only such ones are doubled.
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(quote, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
