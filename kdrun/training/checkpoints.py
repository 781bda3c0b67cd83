"""checkpoints/step-N/: the student, the optimiser and what else a run needs to go on; safetensors and JSON only.

Written aside with a manifest (every file's size and sha256), flushed to the disk, then renamed: a folder named step-N
is whole, unless the disk or a hand has changed it, which its checksums tell.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrun.models.loading import save_model
from kdrun.runs.folders import remove_folder, remove_leftovers, replace_folder
from kdrun.runs.ranks import every_rank, rank
from kdrun.teachers.hashing import files_sha256
from kdrun.training.placement import Placement

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk: `step` optimiser steps are done."""

    folder: Path
    step: int

    @property
    def student(self) -> Path:
        """The model's folder."""
        return self.folder / "student"

    def restore(self, placement: Placement) -> dict[str, Any]:
        """Put the optimiser and torch's random state back; returns what `save_checkpoint` was given as `state`.

        A rank that the run did not have before keeps the random state that it has.
        """
        from safetensors.torch import load_file

        tensors = load_file(self.folder / "optimizer.safetensors")
        streams = {name: tensors.pop(name) for name in list(tensors) if name.startswith("rng.")}
        for kind, set_state in {"cpu": torch.set_rng_state, "cuda": torch.cuda.set_rng_state}.items():
            if (kind == "cpu" or torch.cuda.is_available()) and (name := _stream(kind, rank())) in streams:
                set_state(streams[name])
        placement.load_optimizer_state(tensors)
        content: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return content["state"]


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    run: str,
    model: Any,
    tokenizer: Any,
    placement: Placement,
    state: dict[str, Any],
    keep: int,
) -> Checkpoint:
    """Write checkpoints/step-N, then remove all but the newest `keep`; of several ranks, which all call this, rank 0.

    Args:
        run: what names the run, so that no other goes on from here.
    """
    from safetensors.torch import save_file

    final, aside = folder / f"step-{step}", folder / f".step-{step}.tmp"
    streams = every_rank(_random_state())
    tensors = {name: value.cpu().contiguous() for name, value in placement.optimizer_state() if rank() == 0}
    if rank():
        return Checkpoint(final, step)
    shutil.rmtree(aside, ignore_errors=True)
    save_model(model, tokenizer, aside / "student")
    tensors |= {_stream(kind, number): value for number, own in enumerate(streams) for kind, value in own.items()}
    save_file(tensors, aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step, "state": state}))
    hashes = files_sha256(path for path in aside.rglob("*") if path.is_file())
    files = {str(path.relative_to(aside)): [path.stat().st_size, sha256] for path, sha256 in sorted(hashes.items())}
    (aside / MANIFEST).write_text(json.dumps({"run": run, "step": step, "files": files}, indent=1))
    replace_folder(aside, final)
    for old in find_checkpoints(folder)[:-keep]:
        remove_folder(old.folder)
    return Checkpoint(final, step)


def _random_state() -> dict[str, Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _stream(kind: str, number: int) -> str:
    """The name of a rank's random state on a kind of device."""
    return f"rng.{kind}.{number}" if number else f"rng.{kind}"


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first; their files are not looked at."""
    found = [
        Checkpoint(path, int(path.name.removeprefix("step-")))
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_checkpoint(folder: Path, *, run: str) -> Checkpoint | None:
    """The newest checkpoint of a run that is as it was written.

    Whatever is newer than that one or belongs to another run is named in a warning and renamed unused-step-N, so that
    nothing of this run counts it, writes over it or removes it; what a killed process left aside is removed.
    """
    remove_leftovers(folder)
    newest = None
    for checkpoint in reversed(find_checkpoints(folder)):
        wrong = _fault(checkpoint, run, look_at_files=newest is None)
        if wrong is not None:
            kept = next(path for n in range(1, 10_000) if not (path := _unused(checkpoint.folder, n)).exists())
            checkpoint.folder.rename(kept)
            log.warning("%s is not used: %s; kept as %s", checkpoint.folder, wrong, kept.name)
        elif newest is None:
            newest = checkpoint
    return newest


def _unused(folder: Path, number: int) -> Path:
    return folder.with_name(f"unused-{folder.name}" + (f"-{number}" if number > 1 else ""))


def _fault(checkpoint: Checkpoint, run: str, *, look_at_files: bool) -> str | None:
    """Why a run cannot go on from a checkpoint; None when it can."""
    folder = checkpoint.folder
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(size), str(sha256)) for name, (size, sha256) in content["files"].items()}
        owner, step = content["run"], content["step"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
    if owner != run:
        return "it is of another run"
    if step != checkpoint.step:
        return f"{MANIFEST} says step {step}"
    if not look_at_files:
        return None
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    for name, (size, _) in files.items():
        if name not in there or there[name].stat().st_size != size:
            return f"{name} is missing or has another size than the {size:,} bytes that were written"
    hashes = files_sha256(there[name] for name in files)
    altered = [name for name, (_, sha256) in files.items() if hashes[there[name]] != sha256]
    return f"{altered[0]} has another sha256 than what was written" if altered else None
