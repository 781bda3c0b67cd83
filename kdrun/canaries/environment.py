"""The machine and what is installed on it, seen by what a training needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from kdrun.canaries.finding import Finding, fine
from kdrun.runs.gpus import unseen_gpu
from kdrun.runs.provenance import hardware

NEEDED = ("torch", "transformers", "tokenizers", "accelerate")
HUB_WAIT_S = 3
LITTLE_DISK_GB, LITTLE_MEMORY_GIB = 5, 4


def environment(*, outputs: Path, constraints: Path, tracking: str) -> dict[str, Callable[[], Finding]]:
    """{name: check} of the machine.

    Args:
        outputs: where runs will be written. constraints: the file of the versions that are tested.
        tracking: track.mode of the config.
    """
    return {
        "python": python,
        "packages": partial(packages, constraints),
        "threads": threads,
        "memory": memory,
        "devices": devices,
        "compiler": compiler,
        "disk": partial(disk, outputs),
        "hub": hub,
        "wandb": partial(wandb, tracking),
        "extras": extras,
    }


def python() -> Finding:
    """The interpreter."""
    return Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")


def packages(constraints: Path) -> Finding:
    """Installed versions: what kdrun requires, and what its tests ran with (in a checkout)."""
    from packaging.requirements import Requirement

    def unmet_of(lines: Iterable[str]) -> Iterator[tuple[Requirement, str | None]]:
        for required in map(Requirement, lines):
            found = _installed(required.name)
            applies = required.marker is None or required.marker.evaluate({"extra": ""})
            if applies and (found is None or not required.specifier.contains(found, prereleases=True)):
                yield required, found

    unmet = [f"{required.name} {found or 'missing'} (wanted {required.specifier})"
             for required, found in unmet_of(metadata.requires("kdrun") or [])]  # fmt: skip
    tested = constraints.read_text(encoding="utf-8").splitlines() if constraints.is_file() else []
    others = [f"{required.name} {found} ({required.specifier})" for required, found in unmet_of(tested) if found]
    named = [f"{name} {_installed(name)}" for name in NEEDED]
    if unmet:
        return Finding("packages", "FAIL", "; ".join(unmet), "pip install -c constraints.txt -e . in the checkout")
    if others:
        said = f"{', '.join(named)}; {len(others)} not as tested: {'; '.join(others[:4])}"
        return Finding("packages", "warning", said, "pip install -c constraints.txt -e . brings the tested versions")
    return Finding("packages", "ok", ", ".join(named) + (", all as tested" if constraints.is_file() else ""))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def threads() -> Finding:
    """Threads that torch will start, against the cores that this process may use."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.get_num_threads()
    said = f"torch takes {count} threads; {usable} cores may be used"
    remedy = f"threads wait for one another: export OMP_NUM_THREADS={usable}"
    return fine("threads", count <= usable, said, remedy=remedy)


def memory() -> Finding:
    """Main memory in all, and free where the system says so."""
    said, meminfo = f"{hardware()['memory_gib']} GiB", Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    free = next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), None)
    if free is None:
        return Finding("memory", "ok", said)
    remedy = "enough for the tiny pair; a parameter in training takes 16 bytes"
    return fine("memory", free >= LITTLE_MEMORY_GIB, f"{said}, {free:.1f} GiB free", remedy=remedy)


def devices() -> Finding:
    """GPUs, Apple's, and whether the processor multiplies bf16 fast; a GPU that torch does not see is a warning."""
    import torch

    if line := unseen_gpu("train.device", torch.cuda.is_available):
        return Finding("devices", "warning", line, "install a torch for this driver, or look at CUDA_VISIBLE_DEVICES")
    found = []
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        found.append(f"cuda:{i} {facts.name} ({facts.total_memory / 2**30:.0f} GiB, {bf16})")
    if torch.backends.mps.is_available():
        found.append("mps")
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    found.append(f"cpu ({platform.machine()}, {'fast' if fast else 'no fast'} bf16)")
    return Finding("devices", "ok", ", ".join(found))


def compiler() -> Finding:
    """Whether kdrun's C runs here; without it the same is computed by torch, slower."""
    from kdrun.native import compiled

    if compiled("head_border") is not None:
        return Finding("compiler", "ok", "kdrun's C code is compiled and loaded")
    return Finding("compiler", "warning", "no C compiler that works: the head of AKL is found by torch, slower",
                   "install gcc or clang (or set CC)")  # fmt: skip


def disk(outputs: Path) -> Finding:
    """Free space and the right to write where runs will be written; nothing is left there."""
    place = next(path for path in (outputs.absolute(), *outputs.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"kdrun")
            file.flush()
    except OSError as error:
        return Finding(
            "disk", "FAIL", f"{place}: {error.strerror or error}", "export KDRUN_OUTPUTS=DIR that takes files"
        )
    free = shutil.disk_usage(place).free / 1e9
    said = f"{free:.1f} GB free in {place}, which takes files"
    remedy = "make room, or export KDRUN_OUTPUTS=DIR on a larger disk"
    return fine("disk", free >= LITTLE_DISK_GB, said, remedy=remedy)


def hub() -> Finding:
    """Whether the model hub answers within three seconds; HF_HUB_OFFLINE is obeyed."""
    import threading

    from huggingface_hub import constants

    cached = "what is on this machine still loads, and pair=tiny data=unicode needs no hub"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "warning", "not asked: HF_HUB_OFFLINE is set", f"{cached}; unset it to fetch models")
    answers: list[str] = []

    def ask() -> None:
        import httpx

        try:
            answers.append(f"answered {httpx.head(constants.ENDPOINT, timeout=HUB_WAIT_S).status_code}")
        except httpx.HTTPError as error:
            answers.append(f"{type(error).__name__}: {error}")

    # The look-up of a name has no time-out of its own, so a thread that is left behind does the asking.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_WAIT_S)
    said = f"{constants.ENDPOINT}: {answers[0] if answers else f'no answer in {HUB_WAIT_S} s'}"
    answered = bool(answers) and answers[0].startswith("answered")
    return fine("hub", answered, said, remedy=f"{cached}; export HF_HUB_OFFLINE=1 saves the waiting")


def wandb(tracking: str) -> Finding:
    """What W&B would do: the mode and whether a key is there. The key itself is shown nowhere."""
    mode = os.environ.get("WANDB_MODE") or "auto" if tracking == "auto" else tracking
    has_key = _has_key()
    key = "a key is there" if has_key else "no key"
    if mode == "disabled":
        return Finding("wandb", "ok", f"disabled; {key}")
    if mode == "online" and not has_key:
        return Finding("wandb", "warning", "online is wanted and there is no key: runs will be logged offline",
                       "wandb login, or track.mode=offline")  # fmt: skip
    if mode == "auto":
        mode = "online" if has_key else "offline"
    return Finding("wandb", "ok", f"track.mode={tracking}, so {mode}; {key}")


def _has_key() -> bool:
    import netrc
    from urllib.parse import urlparse

    from wandb import Settings

    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or Settings().base_url).hostname or ""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return file.is_file() and netrc.netrc(str(file)).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False


def extras() -> Finding:
    """The optional parts, read from kdrun's own metadata."""
    from packaging.requirements import Requirement

    required = [Requirement(line) for line in metadata.requires("kdrun") or []]
    said, wanted = [], []
    for extra in metadata.metadata("kdrun").get_all("Provides-Extra") or []:
        names = [r.name for r in required if r.marker and r.marker.evaluate({"extra": extra})
                 and not r.marker.evaluate({"extra": ""})]  # fmt: skip
        missing = [name for name in names if _installed(name) is None]
        said.append(f"{extra} {'without ' + ', '.join(missing) if missing else 'installed'}")
        wanted += [extra] if missing else []
    if not wanted:
        return Finding("extras", "ok", "; ".join(said))
    return Finding("extras", "skipped", "; ".join(said), f"where it is wanted: pip install 'kdrun[{','.join(wanted)}]'")
