"""One pass of the teacher over a set of rows, written down shard by shard.

Shapes: N scored tokens of a batch, W bytes of a token.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrun.data.batch import Batch, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.runs.provenance import versions
from kdrun.teachers.listing import spell_bytes
from kdrun.teachers.live import refuse_not_finite
from kdrun.teachers.manifest import MANIFEST
from kdrun.teachers.store import SHARD_BYTES, PartialStore, plan_layout

# One forward pass: so many rows and padded positions at most. Rows lie by length, so there is little padding.
PASS_ROWS = 64
PASS_POSITIONS = 8192
# Of the estimate: file systems round up, and the manifest and the table of rows come on top.
MARGIN = 1.02
MARGIN_BYTES = 16 * 2**20

Progress = Callable[..., AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Record:
    """What is stored of a token: `of` gives it for a batch as bytes [N, W]; `facts` go into the manifest."""

    of: Callable[[Batch], Tensor]
    row_bytes: int
    facts: dict[str, Any]


def estimate_bytes(sets: Sequence[EncodedSet], *, row_bytes: int, head_bytes: int) -> int:
    """Bytes that the caches of these sets and one head will take."""
    return sum(rows.num_scored_tokens for rows in sets) * row_bytes + head_bytes


def check_disk(folder: Path, needed: int, *, key: str) -> int:
    """Free bytes where the folder is or will be.

    Raises:
        UserError: naming `key` and both numbers, when there is not enough.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed * MARGIN + MARGIN_BYTES > free:
        raise UserError(
            f"{key}={folder}: the teacher cache takes about {spell_bytes(needed)} and {spell_bytes(free)} are free on "
            f"that disk; make room, type {key}=DIR on a larger one, or use fewer rows (data.max_rows=N)"
        )
    return free


def build(
    folder: Path,
    rows: EncodedSet,
    record: Record,
    *,
    identity: dict[str, Any],
    notes: dict[str, Any],
    head: dict[str, Any],
    pad_id: int,
    device: Any,
    progress: Progress,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Make the cache of one set in `folder`, going on with what a killed attempt left. The caller holds the lock.

    Args:
        identity: see `identity_fields`. notes: for people (teacher, data, split). head: entry of the head's file.
        progress: called as progress(name, tokens, done=tokens) for a context that gives a callable of tokens done.
    """
    started = time.monotonic()
    if sys.byteorder != "little":
        raise UserError("teacher=cached: shards are little-endian, this machine is not; use teacher=live")
    layout = plan_layout(rows, row_bytes=record.row_bytes, shard_bytes=shard_bytes)
    plan = {"identity": identity, "row_bytes": record.row_bytes, "token_starts": list(layout.token_starts), **notes}
    store = PartialStore(folder, layout, plan)
    missing = store.missing()
    made_before = layout.token_starts[-1] - sum(map(layout.num_tokens, missing))
    with progress(f"teacher: {notes['split']}", layout.token_starts[-1], done=made_before) as advance:
        for shard in missing:
            tokens_NW = np.empty((layout.num_tokens(shard), record.row_bytes), dtype=np.uint8)
            _fill(tokens_NW, layout.rows(shard), rows, record, pad_id=pad_id, device=device, advance=advance)
            store.write_shard(shard, tokens_NW)
    made = {
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 3),
        "resumed_after_tokens": made_before,
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
        "argv": list(sys.argv),
        "versions": versions(),
    }
    num_tokens = layout.token_starts[-1]
    store.finish(rows, {**notes, "identity": identity, "rows": len(rows), "tokens": num_tokens,
                        "row_bytes": record.row_bytes, **record.facts, "head": head, "made": made})  # fmt: skip


@torch.inference_mode()
def _fill(
    tokens_NW: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    rows: EncodedSet,
    record: Record,
    *,
    pad_id: int,
    device: Any,
    advance: Callable[[int], None],
) -> None:
    """The tokens of these rows, in their order, batch by batch."""
    start = 0
    for piece in pass_batches(rows, numbers):
        batch = make_batch(rows, piece, pad_id=pad_id, device=device)
        assert np.array_equal(batch.rows, piece)  # from short to long already, and the sort is stable
        part_NW = record.of(batch).cpu().numpy()
        tokens_NW[start : start + len(part_NW)] = part_NW
        start += len(part_NW)
        advance(len(part_NW))


def pass_batches(rows: EncodedSet, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows from short to long, cut so that a pass has at most PASS_ROWS rows and PASS_POSITIONS padded positions."""
    lengths = rows.lengths[numbers]
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or end - start == PASS_ROWS or (end - start + 1) * lengths[end] > PASS_POSITIONS:
            yield numbers[start:end]
            start = end


def is_whole(folder: Path) -> bool:
    """Whether a cache stands there under its final name; what is in it is another question."""
    return (folder / MANIFEST).exists()


def hidden_record(hidden: Callable[[Batch], Tensor], *, width: int, dtype: torch.dtype) -> Record:
    """The final hidden state of every scored token, in the teacher's own dtype."""

    def of(batch: Batch) -> Tensor:
        hidden_NE = hidden(batch)
        refuse_not_finite(hidden_NE, batch)
        if hidden_NE.dtype != dtype or hidden_NE.shape[1] != width:
            raise UserError(
                f"pair.teacher: hidden states of width {hidden_NE.shape[1]}, {hidden_NE.dtype}, a head for {width}, "
                f"{dtype}; teacher=cached cannot store such, use teacher=live"
            )
        return hidden_NE.contiguous().view(torch.uint8)

    return Record(of, width * dtype.itemsize, {"width": width})
