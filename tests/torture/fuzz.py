"""Mutations with a fixed seed: of valid words of a command line, and of valid JSON lines."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = (
    "loss=akl", "mu=0.5", "loss=fkl", "kd_ratio=0.5", "temperature=2", "seed=7", "name=run-1", "data=unicode",
    "pair=tiny", "eval=quick", "eval.seeds=[10,20]", "train.lr=1e-3", "train.betas=[0.9,0.999]", "train.max_steps=100",
    "train.batch_size=32", "train.clip_norm=null", "train.schedule=cosine", "data.max_tokens=64", "train=tiny",
    "teacher=cached", "cache.topk=5", "track.mode=disabled", "evaluate=false", "pair.student_width=64",
    "eval.top_p=0.9",
    "eval.suites=[dolly,vicuna]", "data.max_prompt_tokens=32", "+eval.top_k=5", "experiment=null", "train.device=cpu",
    "data=jsonl", "data.path='a b.jsonl'", "pair.teacher=${pair.name}/x", "name=${loss.name}", "hydra.verbose=true",
)  # fmt: skip
SIGNS = (
    "=", "[", "]", "{", "}", "(", ")", ",", ":", ".", "'", '"', "\\", "$", "${", "~", "+", "++", "!", "*", "&", "|",
    "/", "..", "@", "#", "%", "-", "--", " ", "\t", "\n", "\x00", "\x01", "\x1b[2J", "\u202e", "\ufeff", "\u0435",
    "\U0001f600", "\udc80", "null", "true", "nan", "-1", "1e999", "0x10", "9" * 30, "[" * 30, "a" * 300,
)  # fmt: skip
LINES = b"".join([
    b'{"instruction": "Name it.", "input": "", "output": "A cat."}\n',
    b'{"instruction": "Say \\u00e9 \\ud83d\\ude00.", "input": null, "output": ["Yes.", "No."]}\n',
    '{"instruction": "caf\u00e9", "output": ""}\n'.encode(),
    b'{"output": "d", "instruction": "c", "category": 5, "more": {"a": [1, 2.5e3, true]}}\n',
])  # fmt: skip
PIECES = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"NaN",
    b"-", b"1e999", b"9" * 5000, b"[" * 5000, b'{"a":' * 3000, b"\\ud83d", b"\\u0000", b"\xed\xa0\x80", b"\xe2\x80\xa8",
    b"null", b"true", b"0", b" ", b"\t", b'"instruction": 5, ',
)  # fmt: skip


def mutated(text: str, chance: random.Random) -> str:
    """The text with one to three changes: a character deleted, doubled, exchanged or another put in."""
    for _ in range(chance.randint(1, 3)):
        i, sign = chance.randrange(len(text) + 1), chance.choice(SIGNS)
        match chance.randrange(5):
            case 0:
                text = text[:i] + text[i + 1 :]
            case 1:
                text = text[:i] + text[i : i + 1] + text[i:]
            case 2:
                text = text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :]
            case 3:
                text = text[:i] + sign + text[i:]
            case _:
                text = text.partition("=")[0] + "=" + sign
    return text.replace("\0", "")  # no command line can hold one


def fuzzed_words(seed: int) -> list[str]:
    """One to four words, at least one of them mutated."""
    chance = random.Random(seed)
    words = chance.sample(WORDS, chance.randint(1, 4))
    return [
        mutated(words[0], chance),
        *(mutated(word, chance) if chance.random() < 0.3 else word for word in words[1:]),
    ]


def fuzzed_lines(seed: int) -> bytes:
    """A data file of four lines with one to four changes of its bytes."""
    chance, text = random.Random(seed), bytearray(LINES)
    for _ in range(chance.randint(1, 4)):
        i = chance.randrange(len(text))
        j = i + chance.randint(1, 12)
        match chance.randrange(5):
            case 0:
                text[i] ^= 1 << chance.randrange(8)
            case 1:
                del text[i:j]
            case 2:
                text[i:i] = text[i:j]
            case 3:
                text[i:i] = chance.choice(PIECES)
            case _:
                text[i:j] = chance.randbytes(3)
    return bytes(text)


def shown(words: list[str]) -> tuple[int, str]:
    """Exit code and standard error of `kdrun show train WORDS`, in this process. What it crashes with is raised."""
    import contextlib
    import io

    from kdrun.cli import app

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            app(["show", "train", *words], prog_name="kdrun")
        except SystemExit as exit_:
            return int(exit_.code or 0), err.getvalue()
    return 0, err.getvalue()


def read(path: Path, content: bytes) -> str:
    """What is said of a data file; "" when it is taken. What reading crashes with is raised."""
    from kdrun.data.jsonl import read_jsonl
    from kdrun.errors import UserError

    path.write_bytes(content)
    try:
        for example in read_jsonl(path):
            "".join([example.instruction, example.input, *example.references]).encode()
    except UserError as error:
        return str(error)
    return ""
