"""Fixtures of the data tests: real tokenizers and rows where /work/shared is there, and a small one trained here."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


@pytest.fixture(scope="session")
def gpt2():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared("tokenizers", "gpt2"))


@pytest.fixture(scope="session")
def tinyllama():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared("tokenizers", "tinyllama"))


@pytest.fixture(scope="session")
def dolly_path():
    return shared("data", "dolly", "train.jsonl")


@pytest.fixture(scope="session")
def sinst_path():
    return shared("data", "sinst", "valid.jsonl")


@pytest.fixture(scope="session")
def bpe():
    """A byte-level BPE of 300 entries with <eos> as its only special token, and as its padding."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["name the letter", "say what it does"] * 20, vocab_size=300, special_tokens=["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eos>", pad_token="<eos>")


@pytest.fixture
def write_lines(tmp_path):
    """Write bytes or lines of text to a file and return its path."""

    def write(content, name="rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else "".join(f"{line}\n" for line in content).encode())
        return path

    return write
