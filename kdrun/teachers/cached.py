"""The teacher as one pass of it has left it: stored hidden states and the head; no body.

Shapes: N scored tokens of a batch, E teacher width, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrun.data.batch import Batch
from kdrun.models.heads import Head
from kdrun.runs.directory import write_bytes
from kdrun.teachers.manifest import check_manifest, damaged, read_manifest
from kdrun.teachers.store import Shards
from kdrun.untrusted import refuse_links_out

HEAD = "head.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, bf16, fp16 or fp64.

    Raises:
        ValueError: for any other dtype.
    """
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"{dtype}: hidden states are stored as {', '.join(DTYPES)} only")


class CachedTeacher:
    """The hidden states of one set of rows, read from the disk; equal to the live teacher's but for rounding.

    The values are those of the teacher's own dtype, unchanged. A batch is that set's: `batch.rows` are its row numbers.
    """

    def __init__(self, shards: Shards, head: Head) -> None:
        self.shards, self.head = shards, head
        element = shards.manifest["identity"]["dtype"].partition("-")[0]  # of fp32-4bit: what a state is stored in
        self.dtype, self.width = DTYPES[element], int(shards.manifest["width"])

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N, E] on the batch's device, in one gather.

        Raises:
            ValueError: when the batch is of another set.
        """
        device = batch.target_N.device
        if self.shards.count(batch.rows) != batch.num_scored:
            raise ValueError(f"{self.shards.folder}: the batch scores {batch.num_scored} tokens in rows that the cache "
                             f"has {self.shards.count(batch.rows)} of: it is of another set")  # fmt: skip
        shape = (batch.num_scored, self.width)
        hidden_NE = torch.empty(shape, dtype=self.dtype, pin_memory=device.type == "cuda")
        if len(hidden_NE):
            self.shards.read(batch.rows, hidden_NE.view(torch.uint8).numpy())
        return hidden_NE.to(device, non_blocking=True)


def open_cache(folder: Path, identity: dict[str, Any], *, key: str) -> Shards:
    """A whole cache of the wanted identity, every checksum of it looked at.

    Raises:
        UserError: naming the field that differs (after `key`), or the file that is missing, torn or altered.
    """
    refuse_links_out(folder.parent, key=key)
    manifest = read_manifest(folder)
    check_manifest(folder, manifest, identity, key=key)
    return Shards(folder, manifest)


def save_head(head: Head, folder: Path) -> dict[str, Any]:
    """Write head.safetensors, unless it is there already; returns its entry for a manifest.

    Raises:
        UserError: when one is there that is another teacher's, or was altered.
    """
    import hashlib

    from safetensors.torch import save

    tensors = {"weight": head.weight_VD.detach().cpu().contiguous()}
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V.detach().cpu().contiguous()
    content = save(tensors, {"head": json.dumps({"scale": head.scale, "softcap": head.softcap})})
    entry = {"file": HEAD, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path = folder / HEAD
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    elif hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(content).digest():
        raise damaged(path, "is not the head of this teacher, so it was altered", folder)
    return entry


def read_head(folder: Path, *, device: Any, rows: int | None = None) -> Head:
    """The head in a folder, cut to `rows` vocabulary entries (None: whole), on a device."""
    from safetensors import safe_open

    with safe_open(folder / HEAD, framework="pt") as file:
        said = json.loads(file.metadata()["head"])
        tensors = {name: file.get_tensor(name)[:rows].to(device) for name in file.keys()}  # noqa: SIM118 - no mapping
    return Head(tensors["weight"], tensors.get("bias"), said["scale"], said["softcap"])


def head_rows(folder: Path) -> int:
    """Vocabulary entries of the head in a folder; only its header is read."""
    from safetensors import safe_open

    with safe_open(folder / HEAD, framework="pt") as file:
        return int(file.get_slice("weight").get_shape()[0])
