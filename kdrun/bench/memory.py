"""Peak memory of a contestant, in a process of its own: above what the process held before it began.

Nothing else runs there, so neither another contestant's freed pages nor its compiled code count.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdrun.bench.contest import Case

STATUS = Path("/proc/self/status")
RESET_HIGH_WATER = Path("/proc/self/clear_refs")  # writing 5 sets VmHWM to VmRSS, Linux 4.0 and later


class PeakMeter:
    """Highest memory since `start`, in bytes above those at `start`: of the GPU's allocator, or of this process.

    Freed memory is given back to the system first; otherwise pages that the C library keeps would hide allocations.
    Without `start` the peak is that of the whole process since it began.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._before = 0

    def start(self) -> None:
        """The zero of the measurement is now."""
        gc.collect()
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        give_back_freed_memory()
        if STATUS.exists():
            RESET_HIGH_WATER.write_text("5")
            self._before = _status_bytes("VmRSS")
        else:  # a Mac: the high-water mark of the process cannot be set back, so measure before anything large
            self._before = _highest_ever_bytes()

    def peak_bytes(self) -> int:
        """Most bytes held at once since `start`, above those held then."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._before
        highest = _status_bytes("VmHWM") if STATUS.exists() else _highest_ever_bytes()
        return max(0, highest - self._before)


def peak_in_own_process(case: Case, name: str, *, threads: int | None) -> int:
    """Peak bytes of one call of a contestant's work, above its inputs, after one call as warm-up, in a new process."""
    # Spawned, not forked: a fork would share pages with this process and inherit its OpenMP threads.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_one_call, case, name, threads).result()


def _peak_of_one_call(case: Case, name: str, threads: int | None) -> int:
    import torch

    silence()
    if threads is not None:
        torch.set_num_threads(threads)
    contestant = next(c for c in case.contestants() if c.name == name)
    inputs: Any = case.build()
    work = contestant.start(inputs)
    meter = PeakMeter(case.device)
    if STATUS.exists() or case.device.startswith("cuda"):
        work()  # the libraries' own buffers, compiled code and thread stacks are no part of a step
    meter.start()
    work()
    return meter.peak_bytes()


def give_back_freed_memory() -> None:
    """Ask the C library to return freed pages to the system; does nothing where it cannot (not glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def silence() -> None:
    """No progress bars, no telemetry and no hub look-ups from the libraries that contestants import."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # GKD lives in trl.experimental


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _highest_ever_bytes() -> int:
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
