"""Data files that must be refused: JSON lines, one by one, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.malformed.case import Case, case, put

GOOD = b'{"instruction": "Say it.", "input": "", "output": "It."}\n'
TRAIN = "train data=jsonl data.path=my.jsonl"
HUGE_BYTES = 3 * 2**30


def row(**fields: Any) -> bytes:
    """One line; a field of `...` is left out."""
    content = {"instruction": "Say it.", "input": "", "output": "It.", **fields}
    return json.dumps({key: value for key, value in content.items() if value is not ...}).encode() + b"\n"


BAD = {  # name -> (line, what is said of it)
    "no object": (b"5\n", "a number"),
    "a text": (b'"Say it."\n', "text"),
    "null": (b"null\n", "null"),
    "true": (b"true\n", "true"),
    "a list": (b'["Say it.", "It."]\n', "a list"),
    "an empty object": (b"{}\n", "instruction"),
    "an array that begins": (b"[\n", "not an array"),
    "a brace alone": (b"{\n", "column 2"),
    "half a line": (GOOD[:30] + b"\n", "column"),
    "two objects": (GOOD.strip() + GOOD, "Extra data"),
    "a comma after": (b'{"instruction": "a", "output": "b",}\n', "column 36"),
    "single quotes": (b"{'instruction': 'a'}\n", "column 2"),
    "a comment": (b"# nothing\n", "column 1"),
    "CSV": (b"instruction,output\n", "column 1"),
    "a NUL byte": (GOOD[:20] + b"\0" + GOOD[20:], "NUL"),
    "an escaped NUL": (row(output="a\0b"), "NUL"),
    "invalid UTF-8": (GOOD[:20] + b"\xff" + GOOD[20:], "0xff at column 21"),
    "Latin-1": ('{"instruction": "caf\u00e9", "output": "b"}\n'.encode("latin-1"), "UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "a surrogate's byte sequence": (b'{"instruction": "\xed\xa0\xbd", "output": "b"}\n', "UTF-8"),
    "overlong UTF-8": (b'{"instruction": "\xc0\xaf", "output": "b"}\n', "UTF-8"),
    "half a surrogate pair": (b'{"instruction": "\\ud83d", "output": "b"}\n', "\\ud83d"),
    "half a pair in the output": (b'{"instruction": "a", "output": ["b", "\\udc00"]}\n', "output[1]"),
    "NaN": (b'{"instruction": "a", "output": NaN}\n', "NaN"),
    "Infinity": (b'{"instruction": "a", "output": -Infinity}\n', "-Infinity"),
    "NaN in another field": (b'{"instruction": "a", "output": "b", "score": NaN}\n', "NaN"),
    "a control character": (b'{"instruction": "a\x01", "output": "b"}\n', "column"),
    "a bare carriage return": (b'{"instruction": "a\r", "output": "b"}\n', "column"),
    "nested 100,000 deep": (b"[" * 100_000 + b"]" * 100_000 + b"\n", "nested"),
    "nested in a field": (b'{"instruction": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001 + b"\n", "nested"),
    "10,000 digits": (b'{"instruction": ' + b"9" * 10_000 + b', "output": "b"}\n', "digits"),
    "a field twice": (b'{"instruction": "a", "instruction": "b", "output": "c"}\n', "twice"),
    "a field of another name": (row(instruction=..., prompt="a"), '"prompt"'),
    "no output": (row(output=...), '"output" is missing'),
    "a blank instruction": (row(instruction=" \n"), "blank"),
    "an instruction that is a number": (row(instruction=5), "a number (\"5\")"),
    "an instruction that is null": (row(instruction=None), "null"),
    "an instruction that is a list": (row(instruction=["a"]), "a list"),
    "an input that is a number": (row(input=5), '"input"'),
    "an input that is a list": (row(input=[]), '"input"'),
    "an output that is null": (row(output=None), '"output"'),
    "an output that is a number": (row(output=1.5), "1.5"),
    "an output that is an object": (row(output={"text": "a"}), "an object"),
    "no reference": (row(output=[]), "empty list"),
    "a reference that is a number": (row(output=["a", 5]), "output[1]"),
    "a reference that is null": (row(output=[None]), "output[0]"),
    "a reference that is a list": (row(output=[["a"]]), "output[0]"),
    "a truncated escape": (b'{"instruction": "\\u12", "output": "b"}\n', "column"),
    "an unknown escape": (b'{"instruction": "\\x41", "output": "b"}\n', "column"),
    "a name that escapes": (row(instruction=..., **{"\x1b[31m": 1}), "missing"),
    "a line of 17 MiB": (row(output="a" * (17 * 2**20)), "longer than 16777216 bytes"),
}  # fmt: skip


def _line(name: str, line: bytes, said: str) -> Case:
    return case(name, TRAIN, "my.jsonl:", said, arrange=put("my.jsonl", 2 * GOOD + line + GOOD))


def _make(action: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: action(folder / "my.jsonl")


def sparse(path: Path) -> None:
    """A file of 3 GiB without a newline, which takes no room on the disk."""
    with path.open("wb") as file:
        file.write(b'{"instruction": "')
        file.truncate(HUGE_BYTES)


def spaces(path: Path) -> None:
    """A line of 40 MiB of spaces."""
    path.write_bytes(b" " * (40 * 2**20))


LINES = [
    *(_line(name, line, said) for name, (line, said) in BAD.items()),
    case("a second line", TRAIN, "my.jsonl:2:", arrange=put("my.jsonl", GOOD + b"{\n")),
    case("the last line is cut", TRAIN, "my.jsonl:3:", arrange=put("my.jsonl", 2 * GOOD + GOOD[:-9])),
    case("after empty lines", TRAIN, "my.jsonl:4:", arrange=put("my.jsonl", b"\n\r\n \n{\n")),
    case("a byte order mark", TRAIN, "my.jsonl:1:", "byte order", arrange=put("my.jsonl", b"\xef\xbb\xbf" + GOOD)),
    case("no file", TRAIN, "data.path=my.jsonl"),
    case("an empty file", TRAIN, "data.path=my.jsonl", "no example", arrange=put("my.jsonl", b"")),
    case("only line ends", TRAIN, "data.path=my.jsonl", "no example", arrange=put("my.jsonl", b"\n\r\n\n")),
    case("a folder", TRAIN, "data.path=my.jsonl", "folder", arrange=_make(Path.mkdir)),
    case("a pipe", TRAIN, "data.path=my.jsonl", "pipe", arrange=_make(os.mkfifo)),
    case("a loop of links", TRAIN, "data.path=my.jsonl", arrange=_make(lambda path: path.symlink_to(path))),
    case("a link to nothing", TRAIN, "data.path=my.jsonl", arrange=_make(lambda path: path.symlink_to("none_such"))),
    case("a device", "train data=jsonl data.path=/dev/zero", "data.path=/dev/zero", "device"),
    case("a terminal's device", "train data=jsonl data.path=/dev/null", "data.path=/dev/null"),
    case("a folder below a file", "train data=jsonl data.path=my.jsonl/a", "my.jsonl/a", arrange=put("my.jsonl", GOOD)),
    case("a path of 5,000 letters", "train data=jsonl data.path=" + "a" * 5000, "data.path=aaa"),
    case("a path with a newline", ["train", "data=jsonl", "data.path='a\nb'"], "data.path="),
    case("one line of 3 GiB", TRAIN, "my.jsonl:1:", "longer than", arrange=_make(sparse)),
    case("a line of 40 MiB of spaces", TRAIN, "my.jsonl:1:", "longer than", arrange=_make(spaces)),
    case("a corpus of another field", "train data.corpus=c.jsonl", "c.jsonl:2:", "text",
         arrange=put("c.jsonl", b'{"text": "a"}\n{"txt": "a"}\n')),
    case("a corpus of blank lines", "train data.corpus=c.txt", "data.corpus=c.txt", arrange=put("c.txt", b" \n\n")),
    case("a corpus that is no UTF-8", "train data.corpus=c.txt", "c.txt:1:", "0xff", arrange=put("c.txt", b"\xff\n")),
    case("a corpus that is a folder", "train data.corpus=c.txt", "data.corpus=c.txt",
         arrange=lambda folder: (folder / "c.txt").mkdir()),
    case("too few rows to divide", TRAIN, "data.path=my.jsonl", "data.valid_path", arrange=put("my.jsonl", GOOD)),
    case("no validation file", f"{TRAIN} data.valid_path=v.jsonl", "data.valid_path=v.jsonl",
         arrange=put("my.jsonl", GOOD)),
    case("an empty test file", f"{TRAIN} data.valid_path=my.jsonl data.test_path=t.jsonl", "data.test_path=t.jsonl",
         arrange=lambda folder: (put("my.jsonl", GOOD)(folder), put("t.jsonl", b"")(folder))),
    case("a bad line of a validation file", f"{TRAIN} data.valid_path=v.jsonl", "v.jsonl:1:",
         arrange=lambda folder: (put("my.jsonl", GOOD)(folder), put("v.jsonl", b"{")(folder))),
    case("a bad line of a suite", "evaluate student=. data=unicode eval.suites=[my.jsonl]", "my.jsonl:1:",
         arrange=put("my.jsonl", b"{")),
    case("no file of a suite", "train eval.suites=[my.jsonl]", "eval.suites=[my.jsonl]"),
    case("an empty file of a suite", "train eval.suites=[my.jsonl]", "eval.suites", arrange=put("my.jsonl", b"")),
    case("no copy of a suite", "train eval.suites=[dolly] eval.suites_path=.", "eval.suites_path=."),
    case("no folder of suites", "train eval.suites=[dolly] eval.suites_path=s", "eval.suites_path=s"),
    case("no folder of a hub set", "train data=dolly data.path=/none_such", "data.path=/none_such"),
]  # fmt: skip
