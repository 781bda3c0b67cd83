"""sha256 of files, of a model's weights and of a tokenizer; nothing is loaded for it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrun.runs.directory import write_json

# In the order in which transformers looks for them.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
BLOCK_BYTES = 8 * 2**20


def file_sha256(path: Path) -> str:
    """sha256 of a file's content; a file whose path, size, time and inode are unchanged is read once a process."""
    stat = path.stat()
    return _sha256(str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=2**16)
def _sha256(path: str, _size: int, _time_ns: int, _inode: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> dict[Path, str]:
    """sha256 of several files, hashed side by side (hashlib lets go of the interpreter)."""
    files = list(paths)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(file_sha256, files), strict=True))


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder that would be loaded; empty when they are not there."""
    found = (sorted(folder.glob(pattern)) for pattern in WEIGHTS)
    return next((files for files in found if files), [])


def weights_sha256(folder: Path, *, memory: Path | None = None) -> str | None:
    """sha256 over name and content of a model folder's weight files; None when there are none.

    Args:
        memory: a JSON file that remembers the hashes of files by path, size, time and inode (6.4 GB of GPT-2 XL take
            4 to 16 s); None remembers for this process only.
    """
    files = weight_files(folder)
    if not files:
        return None
    known = _read(memory)
    marks = {file: [(s := file.stat()).st_size, s.st_mtime_ns, s.st_ino] for file in files}
    hashes = {f: k[3] for f in files if (k := known.get(str(f.absolute()))) is not None and k[:3] == marks[f]}
    if fresh := files_sha256(f for f in files if f not in hashes):
        hashes |= fresh
        if memory is not None:
            with suppress(OSError):  # a directory of someone else's: hashed again next time
                write_json(memory, known | {str(f.absolute()): [*marks[f], fresh[f]] for f in fresh})
    return text_sha256(json.dumps([[file.name, hashes[file]] for file in files]))


def _read(memory: Path | None) -> dict[str, Any]:
    if memory is None or not memory.exists():
        return {}
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # a memory, no record: what it does not hold is hashed again
    return content if isinstance(content, dict) else {}


def tokenizer_sha256(tokenizer: Any) -> str:
    """sha256 over what each id means and which one ends a text. Merges are left out: they decide the rows alone, which
    have a hash of their own."""
    return text_sha256(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]))


def array_sha256(array: NDArray[Any]) -> str:
    """sha256 over whole numbers; the same on any machine and for any integer type."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<i8").tobytes()).hexdigest()


def text_sha256(text: str) -> str:
    """sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
