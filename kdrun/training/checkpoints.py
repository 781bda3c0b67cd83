"""checkpoints/step-N/: the student, the optimiser and what else a run needs to go on; safetensors and JSON only."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk: `step` optimiser steps are done."""

    folder: Path
    step: int

    @property
    def student(self) -> Path:
        """The model's folder."""
        return self.folder / "student"

    def restore(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put the optimiser and torch's random state back; returns what `save` was given as `state`."""
        from safetensors.torch import load_file

        tensors = load_file(self.folder / "optimizer.safetensors")
        torch.set_rng_state(tensors.pop("rng.cpu"))
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        tensors.pop("rng.cuda", None)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        content: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return content["state"]


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Checkpoint:
    """Write checkpoints/step-N aside, rename it, then remove all but the newest `keep`."""
    from safetensors.torch import save_file

    aside = folder / f".step-{step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside / "student")
    tokenizer.save_pretrained(aside / "student")
    tensors = {
        f"{index}.{key}": value.contiguous()
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step, "state": state}))
    final = folder / f"step-{step}"
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    for old in find_checkpoints(folder)[:-keep]:
        shutil.rmtree(old.folder)
    return Checkpoint(final, step)


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints of a run, oldest first."""
    found = [
        Checkpoint(path, int(path.name.removeprefix("step-")))
        for path in folder.glob("step-*")
        if (path / "state.json").exists() and path.name.removeprefix("step-").isdigit()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)
