"""kdrun cache ls: what teacher caches and texts lie in a directory. No torch, so that it answers at once."""

from __future__ import annotations

from pathlib import Path

from kdrun.commands.assembly import relative
from kdrun.errors import UserError
from kdrun.teachers.listing import find_caches, spell_bytes
from kdrun.untrusted import printable


def list_caches(*directories: Path) -> None:
    """Print every cache at or below the directories: size, bytes a token, use, whole or half-built.

    Raises:
        UserError: when none of them is there.
    """
    there = [directory for directory in directories if directory.is_dir()]
    if not there:
        raise UserError(f"{directories[0]}: no such folder, so no caches yet; kdrun cache makes some")
    found = [entry for directory in there for entry in find_caches(directory)]
    lines = [
        [
            relative(entry.folder), entry.teacher, _count(entry.rows), _count(entry.tokens), entry.dtype,
            spell_bytes(entry.num_bytes), _count(entry.bytes_per_token),
            f"{entry.uses} runs, last {entry.last_used}" if entry.last_used else "none yet", entry.state,
        ]
        for entry in found
    ]  # fmt: skip
    heads = sorted({path for entry in found for path in entry.folder.parent.glob("head.safetensors")})
    lines += [[relative(path), "", "", "", "", spell_bytes(path.stat().st_size), "", "shared by its sets", "head"]
              for path in heads]  # fmt: skip
    print_table(["cache", "teacher", "rows", "tokens", "dtype", "size", "bytes/token", "read by", "state"], lines)
    total = sum(entry.num_bytes for entry in found) + sum(path.stat().st_size for path in heads)
    print(f"{len(found)} caches, {spell_bytes(total)} in {', '.join(map(str, there))}")


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def print_table(header: list[str], lines: list[list[str]]) -> None:
    """Columns wide enough for their longest cell; nothing is cut, so that paths can be copied."""
    lines = [list(map(printable, line)) for line in lines]  # a manifest may be someone else's
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in [header, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
