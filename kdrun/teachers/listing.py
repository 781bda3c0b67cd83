"""What caches lie in a directory, how large they are and who reads them; nothing is opened but manifests."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.runs.ranks import rank
from kdrun.teachers.manifest import MANIFEST, PARTIAL, read_manifest, seal
from kdrun.teachers.store import PLAN, journaled

USES = "uses.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """One cache, whole or half-built."""

    folder: Path
    state: str  # whole, half-built (1 of 3 shards), or what is wrong with it
    teacher: str = "?"
    rows: int | None = None
    tokens: int | None = None
    dtype: str = "?"
    num_bytes: int = 0
    bytes_per_token: int | None = None
    uses: int = 0
    last_used: str | None = None


def spell_bytes(count: float) -> str:
    """Bytes as a person reads them: 917 B, 3.2 kB, 4.5 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def record_use(folder: Path, reader: str) -> None:
    """Note that a run reads a cache: one line, appended at once, so that concurrent runs keep each other's.

    A cache that cannot be written to (someone else's) is read all the same; the log says that it was not noted.
    """
    if rank():
        return
    line = json.dumps({"when": datetime.now().astimezone().isoformat(timespec="seconds"), "run": reader})
    try:
        with (folder / USES).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        log.info("%s: the use is not noted (%s)", folder / USES, error.strerror)


def find_caches(directory: Path) -> list[Listed]:
    """Every cache at or below a directory, by name."""
    return [_listed(folder) for folder in sorted(_set_folders(directory))]


def _set_folders(directory: Path) -> Iterator[Path]:
    for name in (MANIFEST, PLAN):
        yield from (path.parent for path in directory.rglob(name))


def _listed(folder: Path) -> Listed:
    num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if folder.name.endswith(PARTIAL):
        return _half_built(folder, num_bytes)
    try:
        content = read_manifest(folder)
    except UserError as error:
        return Listed(folder, f"damaged: {str(error).partition(';')[0]}", num_bytes=num_bytes)
    sizes = {name: entry["bytes"] for name, entry in content["files"].items()}
    torn = [name for name, size in sizes.items() if not _has_size(folder / name, size)]
    state = f"damaged: {torn[0]}" if torn else "whole"
    uses = _uses(folder)
    return Listed(
        folder, state if seal(content) == content else "damaged: manifest.json altered",
        teacher=str(content.get("teacher")), rows=content.get("rows"), tokens=content.get("tokens"),
        dtype=_dtype(content), num_bytes=num_bytes, bytes_per_token=content["row_bytes"],
        uses=len({use["run"] for use in uses}), last_used=max((use["when"] for use in uses), default=None),
    )  # fmt: skip


def _half_built(folder: Path, num_bytes: int) -> Listed:
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        starts = plan.get("token_starts")  # of texts, nobody knows how long they will be
        state = f"half-built ({len(journaled(folder))} of {len(starts) - 1 if starts else plan['blocks']} shards)"
        return Listed(folder, state, teacher=str(plan.get("teacher")), tokens=starts[-1] if starts else None,
                      num_bytes=num_bytes, dtype=_dtype(plan), bytes_per_token=plan.get("row_bytes"))  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return Listed(folder, "half-built (its plan cannot be read)", num_bytes=num_bytes)


def _dtype(content: dict[str, Any]) -> str:
    """Of the states, or `text`."""
    identity = content["identity"]
    return "text" if identity.get("kind") == "texts" else str(identity.get("dtype"))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _uses(folder: Path) -> list[dict[str, str]]:
    path = folder / USES
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            use = json.loads(line)
        except ValueError:
            continue
        if isinstance(use, dict) and {"run", "when"} <= use.keys():
            found.append(use)
    return found
