"""Hashes of files and weights: what changes is seen, what does not is not read again."""

import hashlib
import os
from pathlib import Path
from typing import Any

from kdrun.teachers.hashing import file_sha256, tokenizer_sha256, weight_files, weights_sha256


def test_the_hash_of_a_file_is_sha256_of_its_content_now(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"one", b"two"):  # of one size
        path.write_bytes(content)
        os.utime(path, ns=(len(content), int.from_bytes(content, "big")))
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()


def test_weights_are_the_files_that_would_be_loaded(tmp_path: Path) -> None:
    assert weights_sha256(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    old = weights_sha256(tmp_path)
    (tmp_path / "model-00001.safetensors").write_bytes(b"x")
    (tmp_path / "model-00002.safetensors").write_bytes(b"y")
    assert [path.name for path in weight_files(tmp_path)] == ["model-00001.safetensors", "model-00002.safetensors"]
    assert weights_sha256(tmp_path) != old


def test_remembered_hashes_are_those_of_the_files_as_they_are(tmp_path: Path) -> None:
    memory, path = tmp_path / "hashes.json", tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    first = weights_sha256(path.parent, memory=memory)
    assert str(path) in memory.read_text()
    assert weights_sha256(path.parent, memory=memory) == first == weights_sha256(path.parent)
    path.write_bytes(b"WEIGHTS!")
    assert weights_sha256(path.parent, memory=memory) not in (None, first)
    memory.write_text("no json")
    assert weights_sha256(path.parent, memory=memory) == weights_sha256(path.parent)


def test_a_tokenizer_is_what_its_ids_mean_and_which_one_ends_a_text() -> None:
    class Tokenizer:
        def __init__(self, vocabulary: dict[str, int], eos_token_id: int) -> None:
            self.vocabulary, self.eos_token_id = vocabulary, eos_token_id

        def get_vocab(self) -> dict[str, Any]:
            return self.vocabulary

    one = tokenizer_sha256(Tokenizer({"a": 0, "b": 1}, 1))
    assert one == tokenizer_sha256(Tokenizer({"b": 1, "a": 0}, 1))
    assert one != tokenizer_sha256(Tokenizer({"a": 1, "b": 0}, 1))
    assert one != tokenizer_sha256(Tokenizer({"a": 0, "b": 1}, 0))
