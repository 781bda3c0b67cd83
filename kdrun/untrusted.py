"""What someone else wrote: names that must stay in their folder, pickles that are not opened, text that is shown.

What is refused raises a UserError that begins with `key`, the key by which it was asked for.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from kdrun.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What transformers has itself; any other name is a hub repository whose compiled kernels it would fetch and run.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def printable(text: str) -> str:
    """The text with every character that a terminal obeys written out (\\x1b): escapes, and marks that turn the
    direction of writing; line ends and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def is_plain_name(name: Any) -> bool:
    """Whether this is the name of a file in a folder, and not a path that leads elsewhere."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\\0]+", name) is not None and name not in (".", "..")


def refuse_links_out(folder: Path, *, key: str) -> None:
    """Nothing at or below a folder is a link that leads out of it: what is written there would land elsewhere.

    W&B's own folder is not looked into; kdrun neither reads nor writes there.
    """
    real = _real(folder)
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "wandb" or (Path(place) / name).is_symlink()]
        for path in (Path(place) / name for name in [*folders, *files]):
            if path.is_symlink() and not _real(path).is_relative_to(real):
                raise UserError(f"{key}: {path} is a link out of that folder, to {_real(path)}; put the files there")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve fails at a loop


def check_model_folder(folder: Path, *, key: str, loader: str = "AutoModelForCausalLM") -> None:
    """A model's folder holds its weights as safetensors, in itself (or in the hub's cache that it is a part of).

    Args:
        loader: the class of transformers that can convert it.
    """
    real = _real(folder)
    blobs = real.parent.parent / "blobs"  # where the links of a snapshot in the hub's cache lead
    files = sorted(path for path in folder.iterdir() if path.suffix != ".lock")
    for path in files:
        if path.is_symlink() and not any(_real(path).is_relative_to(home) for home in (real, blobs)):
            raise UserError(f"{key}: {path} is a link out of that folder, to {_real(path)}; copy the file there")
    names = {path.name for path in files}
    if "adapter_config.json" in names:
        raise UserError(f"{key}: is an adapter, not a whole model; merge it (peft: merge_and_unload) and save that")
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES and name != "training_args.bin")
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{key}: its weights are a pickle ({pickles[0]}), which can hold a program; convert it to safetensors: "
            f"python -c \"from transformers import {loader} as M; M.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\""
        )
    for index in (path for path in files if path.name.endswith(".safetensors.index.json")):
        for name in shard_names(index, key=key):
            if not (is_plain_name(name) and name.endswith(".safetensors")):
                raise UserError(f"{key}: {index.name} names {printable(str(name))}, no safetensors file in that folder")


def shard_names(index: Path, *, key: str) -> list[Any]:
    """The distinct files that an index of shards names, in order."""
    import json

    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{key}: {index} is no index of shards ({type(error).__name__})") from error


def check_model_config(config: Any, *, key: str) -> None:
    """A model's config asks for no code from elsewhere to compute attention with."""
    asked = getattr(config, "_attn_implementation", None)
    for name in asked.values() if isinstance(asked, dict) else [asked]:
        if name is not None and name not in ATTENTIONS:
            raise UserError(
                f"{key}: its config.json asks for attn_implementation={printable(str(name))}, code from elsewhere that "
                "kdrun does not run; take the key out of config.json"
            )
