"""Compiles a .c file of this folder into the user's cache and loads it.

ctypes and the plain C compiler, not torch's extension builder or torch.compile, whose first call takes seconds in every
process: 0.2 s once per machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

log = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-fPIC", "-std=c11")
# Tried in this order: not every compiler knows the processor it runs on, or OpenMP.
VARIANTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The library made of `<name>.c`; None without a compiler that can make it, which is logged once.

    The result lies in $KDRUN_NATIVE_CACHE, or kdrun/ in $XDG_CACHE_HOME or ~/.cache, under a hash of source, compiler
    and processor: a home folder may be shared by machines of different kinds.
    """
    source = Path(__file__).with_name(f"{name}.c")
    compiler = next((path for path in map(shutil.which, (os.environ.get("CC") or "", *COMPILERS)) if path), None)
    if compiler is None:
        log.warning("no C compiler (cc, gcc or clang) found: %s runs as torch operations, slower but the same", name)
        return None
    # OpenMP's functions are found in the runtime that torch loaded: a second one would be a second pool of threads.
    import torch  # noqa: F401

    identity = [source.read_text(), compiler, *FLAGS, *map(str, VARIANTS), _processor()]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number, flags in enumerate(VARIANTS):
            path = folder / f"{name}-{digest}-{number}.so"
            if (path.exists() or _compile(compiler, flags, source, path)) and (library := _load(path)) is not None:
                return library
        reason = "it was refused by every set of flags"
    except OSError as error:
        reason = f"{type(error).__name__}: {error}"
    log.warning("%s cannot be compiled with %s (%s): it runs as torch operations, slower", name, compiler, reason)
    return None


def pointer(tensor: object) -> ctypes.c_void_p:
    """The address of a contiguous tensor's first entry."""
    return ctypes.c_void_p(tensor.data_ptr())  # type: ignore[attr-defined]


def _folder() -> Path:
    if given := os.environ.get("KDRUN_NATIVE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdrun"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    return " ".join((platform.system(), platform.machine(), platform.processor(), flags))


def _compile(compiler: str, flags: tuple[str, ...], source: Path, path: Path) -> bool:
    """Whether the file was made, aside and renamed, so that two processes may do it at once.

    Compiled with OpenMP but linked without it, see `compiled`.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    part = Path(f"{aside}.o")  # not with_suffix, which would take the process's number away
    steps = ([*FLAGS, *flags, "-c", str(source), "-o", str(part)], ["-shared", str(part), "-o", str(aside), "-lm"])
    try:
        for words in steps:
            done = subprocess.run([compiler, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                log.debug("%s %s: %s", compiler, " ".join(words), done.stderr)
                return False
        aside.replace(path)
        return True
    finally:
        part.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)


def _load(path: Path) -> ctypes.CDLL | None:
    """The library, or None when a symbol is missing (OpenMP's, where torch has none) or it is for another machine."""
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        log.debug("%s: %s", path, error)
        return None
