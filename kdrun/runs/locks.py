"""Locks of processes by a file: the system frees those of a process that dies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def try_lock(path: Path, *, mode: int | None = None) -> BaseFileLock | None:
    """The lock of a file, this process's own, whichever thread asks; None when another process has it. Never waits.

    Args:
        mode: the rights of a file that is made; None: as files of this process are made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False) if mode is None else FileLock(path, mode=mode, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
