"""The shards of a cache: fixed-size records, one a scored token, raw little-endian bytes.

Written aside, flushed, renamed and entered in a journal, one shard after the other, so that a build that was killed
goes on after its last whole shard. Shapes: R rows of the set, B rows of a batch, N scored tokens, W bytes a token.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrun.data.encoding import EncodedSet
from kdrun.runs.directory import write_bytes, write_json
from kdrun.teachers.hashing import file_sha256, files_sha256
from kdrun.teachers.manifest import PARTIAL, damaged, read_manifest, write_manifest

SHARD_BYTES = 256 * 2**20
ROWS = "rows.safetensors"
PLAN = "building.json"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Layout:
    """Which row lies where: from short to long, so that a pass over a shard pads little, cut between rows."""

    order_R: NDArray[np.int64]
    row_ends: tuple[int, ...]  # where each shard ends in order_R
    token_starts: tuple[int, ...]  # first token of each shard, then the number of all
    start_R: NDArray[np.int64]  # first token of each row, by row number

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Row numbers of a shard, as they lie in it."""
        return self.order_R[self.row_ends[shard - 1] if shard else 0 : self.row_ends[shard]]

    def num_tokens(self, shard: int) -> int:
        """Scored tokens of a shard."""
        return self.token_starts[shard + 1] - self.token_starts[shard]


def plan_layout(rows: EncodedSet, *, row_bytes: int, shard_bytes: int = SHARD_BYTES) -> Layout:
    """The layout of a set: a function of its rows and the sizes alone. A shard has one row at least."""
    order_R = np.argsort(rows.lengths, kind="stable")
    ends_R = np.cumsum(rows.scored_lengths[order_R])
    row_ends: list[int] = []
    token_starts = [0]
    while (start := row_ends[-1] if row_ends else 0) < len(order_R):
        limit = token_starts[-1] + shard_bytes // row_bytes
        end = max(start + 1, int(np.searchsorted(ends_R, limit, side="right")))
        row_ends.append(end)
        token_starts.append(int(ends_R[end - 1]))
    start_R = np.empty(len(order_R), dtype=np.int64)
    start_R[order_R] = ends_R - rows.scored_lengths[order_R]
    return Layout(order_R, tuple(row_ends), tuple(token_starts), start_R)


def shard_name(shard: int) -> str:
    """states-00000.bin, states-00001.bin, ..."""
    return f"states-{shard:05d}.bin"


class PartialFolder:
    """A folder of files that is being built in FOLDER.partial, and renamed when whole. The caller holds the lock."""

    def __init__(self, final: Path, plan: dict[str, Any]) -> None:
        """Take up what an earlier attempt of the same plan left; anything else there is thrown away.

        Args:
            plan: as JSON; what the files are to hold.
        """
        self.final, self.folder = final, final.with_name(final.name + PARTIAL)
        partial, plan = self.folder, json.loads(json.dumps(plan))
        if not (partial / PLAN).exists() or json.loads((partial / PLAN).read_text(encoding="utf-8")) != plan:
            shutil.rmtree(partial, ignore_errors=True)
            write_json(partial / PLAN, plan)
        for leftover in partial.glob(".*.tmp"):
            leftover.unlink()
        self.files = journaled(partial)
        self._drop_torn()

    def _drop_torn(self) -> None:
        """Forget files that are not what the journal says: they are made again."""
        there = [name for name, entry in self.files.items() if _size(self.folder / name) == entry["bytes"]]
        hashes = files_sha256(self.folder / name for name in there)
        self.files = {n: self.files[n] for n in there if hashes[self.folder / n] == self.files[n]["sha256"]}

    def write(self, name: str, content: Any) -> None:
        """Write one file and enter it in the journal."""
        write_bytes(self.folder / name, content)
        entry = {"bytes": _size(self.folder / name), "sha256": file_sha256(self.folder / name)}
        self.files[name] = entry
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"file": name, **entry}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def seal(self, manifest: dict[str, Any]) -> None:
        """Add the manifest, then give the folder its name."""
        write_manifest(self.folder, {**manifest, "files": dict(sorted(self.files.items()))})
        for scaffold in (PLAN, JOURNAL):
            (self.folder / scaffold).unlink(missing_ok=True)
        self.folder.rename(self.final)


class PartialStore(PartialFolder):
    """A teacher cache that is being built."""

    def __init__(self, final: Path, layout: Layout, plan: dict[str, Any]) -> None:
        super().__init__(final, plan)
        self.layout = layout

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be made."""
        return [shard for shard in range(len(self.layout.row_ends)) if shard_name(shard) not in self.files]

    def write_shard(self, shard: int, tokens_NW: NDArray[np.uint8]) -> None:
        """Write one shard and enter it in the journal."""
        self.write(shard_name(shard), tokens_NW.data)

    def finish(self, rows: EncodedSet, manifest: dict[str, Any]) -> None:
        """Add the table of rows and the manifest, then give the folder its name."""
        from safetensors.numpy import save

        table: dict[str, NDArray[Any]] = {
            "start": self.layout.start_R,
            "scored_lengths": np.ascontiguousarray(rows.scored_lengths),
            "example_index": np.ascontiguousarray(rows.example_index),
            "token_starts": np.array(self.layout.token_starts, dtype=np.int64),
        }
        self.write(ROWS, save(table))
        self.seal(manifest)


def journaled(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that a half-built cache's journal names, with bytes and sha256; a torn last line counts as none."""
    found: dict[str, dict[str, Any]] = {}
    path = folder / JOURNAL
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found[entry.pop("file")] = entry
        except (ValueError, KeyError, AttributeError):
            continue
    return found


def check_sizes(folder: Path, manifest: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """The files that a manifest names, the head that its sets share among them, with what it says of each.

    Raises:
        UserError: naming a file that is missing or has another size, and the folder to delete for it.
    """
    files = {folder / name: entry for name, entry in manifest["files"].items()}
    if head := manifest["head"]:
        files[folder.parent / head["file"]] = head
    for path, entry in files.items():
        if not path.is_file():
            raise damaged(path, "is missing", path.parent)
        if _size(path) != entry["bytes"]:
            why = f"has {_size(path):,} bytes where the manifest says {entry['bytes']:,}"
            raise damaged(path, why, path.parent)
    return files


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """The files that a manifest names are what it says; each is read once a process.

    Raises:
        UserError: naming the file that is missing, torn or altered.
    """
    files = check_sizes(folder, manifest)
    for path, found in files_sha256(files).items():
        if found != files[path]["sha256"]:
            raise damaged(path, "does not have the sha256 of the manifest, so it was altered", path.parent)


class Shards:
    """A whole cache, opened: every file's checksum is looked at once a process, the shards stay open."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        """
        Raises:
            UserError: naming the file that is missing, torn or altered.
        """
        self.folder = folder
        self.manifest = manifest if manifest is not None else read_manifest(folder)
        self.row_bytes = int(self.manifest["row_bytes"])
        check_files(folder, self.manifest)
        self._open_files()

    def _open_files(self) -> None:
        from safetensors.numpy import load_file

        table = load_file(self.folder / ROWS)
        self.start_R, self.length_R = table["start"], table["scored_lengths"]
        self.token_starts = table["token_starts"]
        self.paths = [self.folder / shard_name(shard) for shard in range(len(self.token_starts) - 1)]
        sizes = [(end - start) * self.row_bytes for start, end in pairwise(self.token_starts.tolist())]
        inside = (self.start_R >= 0) & (self.length_R >= 0) & (self.start_R + self.length_R <= self.num_tokens)
        if not inside.all() or sizes != [_size(path) for path in self.paths] or not self.row_bytes > 0:
            raise damaged(self.folder / ROWS, "does not fit the shards beside it", self.folder)
        _allow_open_files(len(self.paths))
        # Open for as long as this is: a shard that is deleted or replaced meanwhile is read all the same.
        self.files = [os.open(path, os.O_RDONLY) for path in self.paths]
        weakref.finalize(self, _close, self.files)

    @property
    def num_tokens(self) -> int:
        """Scored tokens in the cache."""
        return int(self.token_starts[-1])

    @property
    def num_bytes(self) -> int:
        """Size of the set's files, without the head."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def count(self, rows_B: NDArray[np.int64]) -> int:
        """Scored tokens of these rows."""
        return int(self.length_R[rows_B].sum())

    def read(self, rows_B: NDArray[np.int64], out_NW: NDArray[np.uint8]) -> None:
        """The tokens of these rows, row after row, into `out_NW`.

        Read, not memory-mapped: a file that is cut short meanwhile would end the process by SIGBUS, with no word of
        why. As fast: 0.52 s a GB in batches of 32 rows, 0.61 s for one gather from the mapping.

        Raises:
            UserError: naming a shard that is shorter than it was, or cannot be read.
        """
        start_B = self.start_R[rows_B]
        # A row without a scored token may begin where the last shard ends.
        shard_B = np.minimum(np.searchsorted(self.token_starts, start_B, side="right"), len(self.paths)) - 1
        place_B = (start_B - self.token_starts[shard_B]) * self.row_bytes
        into, at = out_NW.data.cast("B"), 0
        for shard, place, size in zip(
            shard_B.tolist(), place_B.tolist(), (self.length_R[rows_B] * self.row_bytes).tolist(), strict=True
        ):
            try:
                got = os.preadv(self.files[shard], [into[at : at + size]], place)
            except OSError as error:
                why = f"can no longer be read ({error.strerror})"
                raise damaged(self.paths[shard], why, self.folder) from error
            if got < size:
                raise damaged(self.paths[shard], "is shorter than when it was opened", self.folder)
            at += size


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _allow_open_files(count: int) -> None:
    """Have the system allow so many more open files, as far as it may."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == -1 else min(wanted, hard), hard))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
