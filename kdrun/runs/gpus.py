"""One job a GPU: a process takes a GPU by a lock file before torch touches CUDA, and keeps it for its life.

The system frees the lock of a process that dies. Sweeps that run at once share the locks, one folder a machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kdrun.runs.locks import try_lock

if TYPE_CHECKING:
    from filelock import BaseFileLock

VISIBLE = "CUDA_VISIBLE_DEVICES"


# The GPU of this process, once it has one, and the lock that says so: a CUDA context cannot move to another GPU.
_claims: dict[str, BaseFileLock] = {}


def visible_gpus() -> list[str]:
    """The GPUs that a process may take, by name; CUDA is not initialised.

    Those of CUDA_VISIBLE_DEVICES where it is set, else all that the driver's own tool lists.
    """
    if (listed := os.environ.get(VISIBLE)) is not None:
        names = [name.strip() for name in listed.split(",")]
        return [name for name in names if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in lines))]


def claim_gpu(*, waiting: Callable[[str], None]) -> str | None:
    """Take a free GPU for this process, waiting until there is one, and show torch no other; None without GPUs.

    Args:
        waiting: told once, in a line, when all are taken.
    """
    names = [] if _claims else visible_gpus()
    told = False
    while names:
        for name in names:
            if lock := _lock(name):
                _claims[name] = lock
                # Numbers are the driver's; CUDA's own order puts the fastest first.
                os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
                os.environ[VISIBLE] = name
                return name
        if not told:
            waiting(f"all GPUs are taken ({', '.join(names)}): waiting for one")
            told = True
        time.sleep(0.5)
    return claimed_gpu()


def claimed_gpu() -> str | None:
    """The GPU that this process has taken."""
    return next(iter(_claims), None)


def _lock(name: str) -> BaseFileLock | None:
    folder = Path(tempfile.gettempdir()) / "kdrun-gpus"
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)  # every user of the machine shares the GPUs
    return try_lock(folder / f"{name.replace('/', '-')}.lock", mode=0o666)


def unseen_gpu(key: str, sees: Callable[[], bool], *, devices: Path = Path("/dev")) -> str | None:
    """Why a job that takes any device gets the processor on a machine that has a GPU; None when it does not.

    Args:
        key: where a device is chosen.
        sees: whether torch sees a GPU; asked only where there is one.
        devices: where the driver's device files are.
    """
    listed = os.environ.get(VISIBLE)
    present = sorted(path.name for path in devices.glob("nvidia[0-9]*"))
    if not (present or (listed and visible_gpus())) or sees():
        return None
    there = ", ".join(present) or "no device file"
    said = f"{VISIBLE} is not set" if listed is None else f"{VISIBLE}={listed!r}"
    return f"torch sees no GPU, so this runs on the processor ({there}; {said}); type {key}=cpu if that is meant"
