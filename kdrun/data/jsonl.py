"""Instruction data as JSON lines: one object a line with `instruction`, `input` and `output`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, NoReturn

from kdrun.data.examples import Example
from kdrun.errors import UserError

MAX_LINE_BYTES = 16 * 2**20
_SHAPE = '{"instruction": "...", "input": "...", "output": "..."}'


def read_jsonl(path: str | Path, *, key: str = "data.path", max_line_bytes: int = MAX_LINE_BYTES) -> list[Example]:
    """The examples of a file, in its order.

    `instruction` is text and not blank; `input` is text, or absent, null or empty for none; `output` is text or a list
    of one or more references. An empty output is allowed: its answer is EOS alone. Other fields are ignored, blank
    lines skipped.

    Raises UserError "FILE:LINE: what is wrong" at the first bad line, "KEY=FILE: ..." when the file cannot be read or
    holds no example. A line over `max_line_bytes` is refused without being read to its end.
    """
    return list(iterate_jsonl(path, key=key, max_line_bytes=max_line_bytes))


def check_jsonl(path: str | Path, *, key: str = "data.path", max_line_bytes: int = MAX_LINE_BYTES) -> int:
    """The number of examples of a file, every line checked as `read_jsonl` does and none kept."""
    return sum(1 for _ in iterate_jsonl(path, key=key, max_line_bytes=max_line_bytes))


def iterate_jsonl(
    path: str | Path, *, key: str = "data.path", max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Example]:
    """The examples one by one, as `read_jsonl` reads them."""
    empty = True
    for row, where in iterate_objects(path, key=key, shape=_SHAPE, max_line_bytes=max_line_bytes):
        empty = False
        yield example_from_row(row, where)
    if empty:
        raise UserError(f"{key}={path}: holds no example; give one JSON object a line: {_SHAPE}")


def iterate_objects(
    path: str | Path, *, key: str, shape: str, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[dict[str, Any], str]]:
    """(object, "FILE:LINE") of every line that is not blank; `shape` says in a refusal what an object must be."""
    for line, where in iterate_lines(path, key=key, max_line_bytes=max_line_bytes):
        if line.strip(" \t\r\v\f"):
            yield _parse(line, where, shape), where


def iterate_lines(path: str | Path, *, key: str, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, str]]:
    """(line without its end, "FILE:LINE") of every line of a text in UTF-8.

    Raises UserError as `read_jsonl`.
    """
    with _open(path, key) as file:
        number = 0
        # Bytes, not text: a text file would end lines at U+2028 too, and could not say which byte is wrong.
        while line := _read_line(file, path, max_line_bytes, number := number + 1):
            yield _decode(line, f"{path}:{number}"), f"{path}:{number}"


def example_from_row(row: Mapping[str, Any], where: str) -> Example:
    """One example from the fields of a row; `where` begins the message of the UserError when they are wrong."""
    for name in ("instruction", "output"):
        if name not in row:
            found = ", ".join(map(_shown, list(row)[:8])) or "none"
            raise UserError(f'{where}: field "{name}" is missing (fields found: {found}); each line is {_SHAPE}')
    instruction = text_of(row["instruction"], "instruction", where)
    if not instruction.strip():
        raise UserError(f'{where}: field "instruction" is blank; it must say what to do')
    given = "" if row.get("input") is None else row["input"]
    output = row["output"]
    if not isinstance(output, list):
        references: tuple[str, ...] = (text_of(output, "output", where, "text or a list of texts"),)
    elif output:
        references = tuple(text_of(text, f"output[{i}]", where) for i, text in enumerate(output))
    else:
        raise UserError(f'{where}: field "output" is an empty list; give at least one reference')
    return Example(instruction, text_of(given, "input", where), references)


def _open(path: str | Path, key: str) -> BinaryIO:
    try:
        file = Path(path).expanduser()
        if not S_ISREG(file.stat().st_mode) and not file.is_dir():
            raise UserError(f"{key}={path}: is a pipe or a device, and is read more than once; type {key}=FILE")
        return file.open("rb")
    except FileNotFoundError:
        raise UserError(f"{key}={path}: no such file; type {key}=FILE") from None
    except IsADirectoryError:
        raise UserError(f"{key}={path}: is a folder; type {key}=FILE") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={_shown(str(path))[1:-1]}: cannot be read ({why}); type {key}=FILE") from None


def _read_line(file: BinaryIO, path: str | Path, max_line_bytes: int, number: int) -> bytes:
    line = file.readline(max_line_bytes + 1)
    if len(line) > max_line_bytes:
        raise UserError(
            f"{path}:{number}: longer than {max_line_bytes} bytes; put newlines in (JSON lines: after each object)"
        )
    return line


def _decode(line: bytes, where: str) -> str:
    if b"\0" in line:
        raise UserError(f"{where}: holds a NUL byte; the file must be text in UTF-8 (not UTF-16, not compressed)")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {line[error.start]:#04x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from None
    text = text.rstrip("\r\n")
    if text.startswith("\ufeff"):
        raise UserError(f"{where}: begins with a byte order mark; save the file as UTF-8 without one")
    return text


def _parse(text: str, where: str, shape: str) -> dict[str, Any]:
    try:
        row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object_of_unique_names)
    except json.JSONDecodeError as error:
        hint = "; one object a line, not an array over several lines" if text.strip() in ("[", "{") else ""
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}){hint}") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is {_kind(row)}, must be one object: {shape}")
    return row


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON value")


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {_shown(next(name for name in names if names.count(name) > 1))} stands twice")
    return row


def text_of(value: Any, field: str, where: str, allowed: str = "text") -> str:
    """The value of a field that must be text, fit for a tokenizer; UserError otherwise."""
    if not isinstance(value, str):
        raise UserError(f'{where}: field "{field}" is {_kind(value)}, must be {allowed}')
    try:
        value.encode()  # an escape such as "\ud83d" without its other half can be neither tokenised nor written
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UserError(f'{where}: field "{field}" holds half a surrogate pair ({half}); mend the escape') from None
    if "\0" in value:
        raise UserError(f'{where}: field "{field}" holds a NUL character; take it out')
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"a number ({_shown(str(value))})"
        case str():
            return f"text ({_shown(value)})"
        case list():
            return "a list"
    return "an object"


def _shown(text: str) -> str:
    """At most 40 characters of a text, on one line and in quotes."""
    return ascii(text if len(text) <= 40 else f"{text[:37]}...").replace("'", '"')
