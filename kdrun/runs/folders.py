"""A folder written whole or not at all, against kills and power cuts alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_folder(aside: Path, final: Path) -> None:
    """Give a folder its name when all of it is on the disk; an earlier one of that name goes when the new one is there.

    At any moment one of the two is whole, under `final` or, for the time of a rename, as .NAME.old beside it.
    """
    for path in (*aside.rglob("*"), aside):
        _flush(path)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    aside.rename(final)
    for parent in (final.parent, final.parent.parent):  # which may be new itself
        _flush(parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, renamed first: one that is half removed has no name that anybody would read."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    shutil.rmtree(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left aside in a folder: .NAME.tmp half written, .NAME.old half removed."""
    for pattern in (".*.tmp", ".*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
