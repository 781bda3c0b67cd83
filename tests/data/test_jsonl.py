"""JSON lines: what is read, and what is said of a bad line."""

import json
import time
import tracemalloc

import pytest

from kdrun.data import Example
from kdrun.data.jsonl import check_jsonl, iterate_jsonl, read_jsonl
from kdrun.errors import UserError

GOOD = b'{"instruction": "Say hello.", "output": "Hello!"}\n'


def test_fields_become_an_example_and_other_fields_are_ignored(write_lines):
    path = write_lines(
        [
            '{"instruction": "Add.", "input": "1 2", "output": "3", "topic": "sums", "prompt": null, "category": [1]}',
            '{"output": ["Hi!", "Hello!"], "instruction": "Say hello.", "input": ""}',
            '{"instruction": "Stop.", "output": ""}',
            '{"instruction": "Go.", "input": null, "output": "Gone."}',
        ]
    )
    assert read_jsonl(path) == [
        Example("Add.", "1 2", ("3",)),
        Example("Say hello.", "", ("Hi!", "Hello!")),
        Example("Stop.", "", ("",)),
        Example("Go.", "", ("Gone.",)),
    ]


def test_text_is_kept_as_it_stands(write_lines):
    texts = [" leading and trailing ", "tab\there", "two\n\nlines\r\n", "caf\u00e9 \U0001f600", "<|endoftext|>"]
    path = write_lines([json.dumps({"instruction": text, "input": text, "output": [text]}) for text in texts])
    assert read_jsonl(path) == [Example(text, text, (text,)) for text in texts]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_line_ends_and_a_missing_last_newline_do_not_matter(write_lines, ending):
    lines = [GOOD.strip(), b"", b"  ", GOOD.strip()]
    path = write_lines((ending or b"\n").join(lines) + ending)
    assert [example.response for example in read_jsonl(path)] == ["Hello!", "Hello!"]


def test_a_line_separator_inside_a_text_does_not_end_the_line(write_lines):
    path = write_lines('{"instruction": "a\u2028b\x85c", "output": "d"}\n'.encode())
    assert read_jsonl(path)[0].instruction == "a\u2028b\x85c"


def test_escaped_surrogate_pairs_are_one_character(write_lines):
    path = write_lines(rb'{"instruction": "Name \ud83d\ude00", "output": "GRINNING FACE"}')
    assert read_jsonl(path)[0].instruction == "Name \U0001f600"


BAD_LINES = {
    "cut off": (b'{"instruction": "a", "output": "b"', "not JSON", "column 35"),
    "no comma": (b'{"instruction": "a" "output": "b"}', "not JSON", "column 21"),
    "single quotes": (b"{'instruction': 'a', 'output': 'b'}", "not JSON", "column 2"),
    "trailing comma": (b'{"instruction": "a", "output": "b",}', "not JSON", "column"),
    "two objects": (b'{"instruction": "a", "output": "b"}{}', "not JSON", "Extra data"),
    "plain text": (b"Say hello.", "not JSON", "column 1"),
    "raw tab in a text": (b'{"instruction": "a\tb", "output": "b"}', "not JSON", "control character"),
    "bad escape": (rb'{"instruction": "\x41", "output": "b"}', "not JSON", "escape"),
    "NaN": (b'{"instruction": "a", "output": "b", "score": NaN}', "not JSON", "NaN"),
    "field twice": (b'{"instruction": "a", "output": "b", "output": "c"}', "not JSON", '"output" stands twice'),
    "deep nesting": (b"[" * 200_000, "nested too deeply"),
    "huge number": (b'{"instruction": "a", "output": "b", "n": ' + b"9" * 5000 + b"}", "not JSON", "digits"),
    "start of an array": (b"[", "not JSON", "not an array over several lines"),
    "array": (b'[{"instruction": "a", "output": "b"}]', "is a list", "must be one object"),
    "string": (b'"instruction"', 'is text ("instruction")', "must be one object"),
    "number": (b"3", "is a number (", "must be one object"),
    "null": (b"null", "is null", "must be one object"),
    "true": (b"true", "is true", "must be one object"),
    "no instruction": (b'{"prompt": "a", "output": "b"}', '"instruction" is missing', '"prompt", "output"'),
    "no output": (b'{"instruction": "a", "completion": "b"}', '"output" is missing', "completion"),
    "empty object": (b"{}", '"instruction" is missing', "none"),
    "instruction is a number": (b'{"instruction": 3, "output": "b"}', '"instruction" is a number', "must be text"),
    "instruction is null": (b'{"instruction": null, "output": "b"}', '"instruction" is null', "must be text"),
    "instruction is empty": (b'{"instruction": "", "output": "b"}', '"instruction" is blank'),
    "instruction is blank": (rb'{"instruction": " \n", "output": "b"}', '"instruction" is blank'),
    "input is a list": (b'{"instruction": "a", "input": [], "output": "b"}', '"input" is a list', "must be text"),
    "input is false": (b'{"instruction": "a", "input": false, "output": "b"}', '"input" is false', "must be text"),
    "output is null": (b'{"instruction": "a", "output": null}', '"output" is null', "list of texts"),
    "output is an object": (b'{"instruction": "a", "output": {}}', '"output" is an object', "list of texts"),
    "output is an empty list": (b'{"instruction": "a", "output": []}', '"output" is an empty list', "one reference"),
    "output holds a number": (b'{"instruction": "a", "output": ["b", 2]}', '"output[1]" is a number', "must be text"),
    "half a surrogate pair": (rb'{"instruction": "a\ud83d", "output": "b"}', "half a surrogate pair", r"\ud83d"),
    "half a pair in a reference": (rb'{"instruction": "a", "output": ["\udc00"]}', '"output[0]"', r"\udc00"),
    "escaped NUL": (rb'{"instruction": "a\u0000", "output": "b"}', "NUL character"),
    "NUL byte": (b'{"instruction": "a\0", "output": "b"}', "NUL byte"),
    "Latin-1": (b'{"instruction": "caf\xe9", "output": "b"}', "byte 0xe9 at column 21 is not UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x08aaaa", "byte 0x8b at column 2 is not UTF-8"),
    "byte order mark": (b'\xef\xbb\xbf{"instruction": "a", "output": "b"}', "byte order mark"),
    "UTF-16": ('{"instruction": "a", "output": "b"}'.encode("utf-16-le"), "NUL byte"),
    "too long": (b'{"instruction": "' + b"a" * 2_000_000 + b'", "output": "b"}', "longer than 1048576 bytes"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_line_in_one_line(write_lines, case):
    line, *parts = BAD_LINES[case]
    path = write_lines(GOOD + b"\n" + line + b"\n" + GOOD)
    for reader in (read_jsonl, check_jsonl):
        with pytest.raises(UserError) as caught:
            reader(path, max_line_bytes=2**20)
        message = str(caught.value)
        assert message.startswith(f"{path}:3: ")
        assert "\n" not in message
        assert len(message) < len(str(path)) + 300
        for part in parts:
            assert part in message


@pytest.mark.parametrize("content", [b"", b"\n", b"\n  \r\n\n"])
def test_a_file_without_examples_is_refused_by_key(write_lines, content):
    path = write_lines(content)
    with pytest.raises(UserError, match=r"^data\.valid_path=.*: holds no example"):
        read_jsonl(path, key="data.valid_path")
    with pytest.raises(UserError, match="holds no example"):
        check_jsonl(path)


def test_a_missing_file_and_a_folder_are_named_by_key(tmp_path):
    with pytest.raises(UserError, match=r"^data\.test_path=.*nowhere\.jsonl: no such file; type data\.test_path=FILE"):
        read_jsonl(tmp_path / "nowhere.jsonl", key="data.test_path")
    with pytest.raises(UserError, match=r"^data\.path=.*: is a folder"):
        read_jsonl(tmp_path)
    with pytest.raises(UserError, match=r"^data\.path=.*: cannot be read"):
        read_jsonl("a" * 5000)
    with pytest.raises(UserError, match=r"^data\.path=.*: cannot be read"):
        read_jsonl("a\0b")


def test_a_huge_line_is_refused_without_being_read(tmp_path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(8 * 2**30)  # 8 GiB, sparse: no newline in it
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(UserError, match=r":1: longer than 16777216 bytes"):
        read_jsonl(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20
    assert time.perf_counter() - start < 5


def test_a_line_of_exactly_the_limit_is_read(write_lines):
    path = write_lines(GOOD)
    assert check_jsonl(path, max_line_bytes=len(GOOD)) == 1
    with pytest.raises(UserError, match="longer than"):
        check_jsonl(path, max_line_bytes=len(GOOD) - 1)


def test_checking_keeps_no_rows(write_lines):
    path = write_lines((b'{"instruction": "' + b"a" * 1000 + b'", "output": "b"}\n') * 20_000)
    tracemalloc.start()
    assert check_jsonl(path) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # the file is 20 MB


def test_iterating_yields_the_good_rows_before_a_bad_one(write_lines):
    rows = iterate_jsonl(write_lines(GOOD + b"bad\n"))
    assert next(rows).response == "Hello!"
    with pytest.raises(UserError, match=":2: not JSON"):
        next(rows)


def test_the_real_dolly_and_sinst_rows_are_read(dolly_path, sinst_path):
    dolly = read_jsonl(dolly_path)
    rows = [json.loads(line) for line in dolly_path.read_text().splitlines() if line]
    assert [(e.instruction, e.input, e.response) for e in dolly] == [
        (row["instruction"], row["input"], row["output"]) for row in rows
    ]
    assert check_jsonl(sinst_path) == 400
    assert max(len(example.references) for example in read_jsonl(sinst_path)) > 1
