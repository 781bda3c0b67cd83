"""By which code, on which machine: git commit, versions, hardware, for run.json."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from kdrun.runs.gpus import claimed_gpu

PACKAGES = (
    "kdrun",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "hydra-core",
    "rouge-score",
    "bert-score",
)


def provenance() -> dict[str, Any]:
    """argv, working directory, git commit and dirty flag of the code, package versions, machine, the GPU it claimed."""
    return {
        "argv": list(sys.argv),
        "directory": os.getcwd(),
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "process": os.getpid(),
        "gpu": claimed_gpu(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that the code runs from; None when it is no checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions, by default of the packages that decide a run's numbers; "absent" for what is not there."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, and GPUs when torch is loaded and sees some."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "memory_gib": None}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
