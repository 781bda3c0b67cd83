"""Encoded rows kept on disk, so that a set is tokenised once: not by every cell of a sweep, nor by every later run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Example

FORMAT = "1"  # to be raised when `encode` gives other rows for the same examples and settings
ARRAYS = ("ids", "offsets", "prompt_lengths", "example_index")

log = logging.getLogger(__name__)


def encode_once(examples: Sequence[Example], tokenizer: Any, *, folder: Path | None, **settings: Any) -> EncodedSet:
    """`encode(examples, tokenizer, **settings)`, taken from `folder` when the same was encoded before, else put there.

    The file's name is a hash of the examples, the tokenizer and the settings; what it holds is checked against its own
    hash, and a damaged file is named and made again. folder=None, or a tokenizer whose state cannot be written out (a
    slow one), stores nothing.
    """
    state = _state(tokenizer)
    if folder is None or state is None:
        return encode(examples, tokenizer, **settings)
    path = folder / f"{_key(examples, state, settings)}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except Exception as error:  # safetensors raises its own
            log.warning("%s is damaged (%s): encoding again", path, " ".join(str(error).split()))
    encoded = encode(examples, tokenizer, **settings)
    _write(path, encoded)
    return encoded


def _state(tokenizer: Any) -> str | None:
    """All that a fast tokenizer's result depends on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return json.dumps([type(tokenizer).__name__, backend.to_str(), tokenizer.chat_template, tokenizer.eos_token_id])


def _key(examples: Sequence[Example], state: str, settings: dict[str, Any]) -> str:
    from importlib import metadata

    versions = [metadata.version(name) for name in ("transformers", "tokenizers")]
    digest = hashlib.sha256(json.dumps([FORMAT, versions, state, settings], sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.instruction, example.input, example.response]).encode())
    return digest.hexdigest()[:32]


def _write(path: Path, encoded: EncodedSet) -> None:
    from safetensors.numpy import save_file

    counts = {f.name: str(getattr(encoded, f.name)) for f in fields(encoded) if f.name not in ARRAYS}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    arrays = {name: np.ascontiguousarray(getattr(encoded, name)) for name in ARRAYS}
    save_file(arrays, aside, metadata={"sha256": _sha256(encoded), **counts})
    aside.replace(path)


def _read(path: Path) -> EncodedSet:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        notes = dict(file.metadata() or {})
        arrays = {name: file.get_tensor(name) for name in ARRAYS}
    expected = notes.pop("sha256", None)
    encoded = EncodedSet(**arrays, **{name: int(value) for name, value in notes.items()})  # type: ignore[arg-type]
    if _sha256(encoded) != expected:
        raise ValueError("its rows do not have the hash that it names")
    return encoded


def _sha256(encoded: EncodedSet) -> str:
    """Over the rows and the counts."""
    counts = [getattr(encoded, f.name) for f in fields(encoded) if f.name not in ARRAYS]
    return hashlib.sha256(json.dumps([encoded.fingerprint(), *counts]).encode()).hexdigest()
