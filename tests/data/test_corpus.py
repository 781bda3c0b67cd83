"""Plain text as rows: what is joined, where it is cut, what is refused."""

import json
import subprocess
import sys

import pytest

from kdrun.data.corpus import check_corpus, iterate_documents, load_corpus
from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError

DOCUMENTS = ["name the letter", "say what it does\nand more", "name <eos> it"]


def rows_of(corpus: EncodedSet) -> list[list[int]]:
    return [corpus.row(i)[0].tolist() for i in range(len(corpus))]


@pytest.fixture
def as_json(write_lines):
    return str(write_lines([json.dumps({"text": text, "more": 1}) for text in DOCUMENTS], "corpus.jsonl"))


@pytest.fixture
def as_text(write_lines):
    return str(write_lines("\n\n \r\n".join(["", *DOCUMENTS]).replace("\n", "\r\n").encode(), "corpus.txt"))


def test_documents_are_joined_with_eos_after_each_and_cut_into_rows_whose_first_id_is_unscored(bpe, as_json, as_text):
    stream = []
    for text in DOCUMENTS:
        stream += [*bpe(text, split_special_tokens=True)["input_ids"], bpe.eos_token_id]
    assert stream.count(bpe.eos_token_id) == 3, "a special token that a document spells is plain text"
    for path in (as_json, as_text):
        corpus = load_corpus(path, bpe, max_tokens=7)
        assert rows_of(corpus) == [stream[i : i + 7] for i in range(0, len(stream), 7)]
        assert corpus.prompt_lengths.tolist() == [1] * len(corpus)
        assert corpus.example_index.tolist() == list(range(len(corpus)))
        assert corpus.num_scored_tokens == len(stream) - len(corpus)


@pytest.mark.parametrize(("max_tokens", "last"), [(8, 8), (5, 1), (3, 1), (7, 2)])
def test_a_last_row_of_one_id_is_left_out(bpe, write_lines, max_tokens, last):
    ids = bpe("name the letter")["input_ids"][:1]
    path = write_lines([json.dumps({"text": bpe.decode(ids)})] * 8, "corpus.jsonl")  # 8 times one id and EOS
    rows = rows_of(load_corpus(str(path), bpe, max_tokens=max_tokens))
    kept = 16 if last > 1 else 15
    assert sum(map(len, rows)) == kept and len(rows[-1]) == (last if last > 1 else max_tokens)


def test_batches_of_documents_do_not_show_in_the_rows(bpe, as_json, monkeypatch):
    whole = load_corpus(as_json, bpe, max_tokens=7)
    monkeypatch.setattr("kdrun.data.corpus.CHARACTERS_AT_ONCE", 10)
    assert load_corpus(as_json, bpe, max_tokens=7).fingerprint() == whole.fingerprint()


def test_blank_documents_are_left_out_and_lines_of_a_document_stay_together(write_lines):
    path = write_lines(b"one\n  two\n\n\n \t\nthree\n\n", "corpus.txt")
    assert list(iterate_documents(str(path))) == ["one\n  two", "three"]
    path = write_lines([json.dumps({"text": text}) for text in ("", "one\n\ntwo", " \n")], "corpus.jsonl")
    assert list(iterate_documents(str(path))) == ["one\n\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.csv", b"text\n", "data.corpus=.*c.csv: must end in .txt"),
        ("c.txt", b"", "data.corpus=.*c.txt: holds no text"),
        ("c.txt", b"\n \n\n", "data.corpus=.*c.txt: holds no text"),
        ("c.txt", b"one\ntw\xffo\n", r"c.txt:2: byte 0xff at column 3 is not UTF-8"),
        ("c.txt", b"on\0e\n", "c.txt:1: holds a NUL byte"),
        ("c.jsonl", b"", "data.corpus=.*c.jsonl: holds no text"),
        ("c.jsonl", b'{"text": " "}\n', "data.corpus=.*c.jsonl: holds no text"),
        ("c.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', r'c.jsonl:2: field "text" is missing'),
        ("c.jsonl", b'{"text": 5}\n', r'c.jsonl:1: field "text" is a number'),
        ("c.jsonl", b'{"text": "\\ud83d"}\n', "c.jsonl:1: .*surrogate"),
        ("c.jsonl", b'{"text": "a"\n', "c.jsonl:1: not JSON"),
        ("c.jsonl", b'["a"]\n', 'c.jsonl:1: is a list, must be one object: {"text": "..."}'),
    ],
)
def test_what_is_no_corpus_is_refused_in_one_line(write_lines, name, content, told):
    with pytest.raises(UserError, match=told) as caught:
        check_corpus(str(write_lines(content, name)))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.corpus=none\.txt: no such file"):
        check_corpus("none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=r"data\.corpus=.*: is a folder"):
        check_corpus(str(tmp_path / "folder.txt"))


def test_a_corpus_is_checked_without_torch(as_json):
    probe = (
        "import sys; from kdrun.data.corpus import check_corpus; check_corpus(sys.argv[1]); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe, as_json], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
