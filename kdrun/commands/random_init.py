"""pair.random_init=true: the folders that take the place of a pair's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.config import PretrainedPair
from kdrun.errors import UserError
from kdrun.models.loading import load_tokenizer, quiet_libraries
from kdrun.models.random_init import shape_at_hand, write_shape, write_weights
from kdrun.runs.directory import claim
from kdrun.runs.folders import replace_folder
from kdrun.teachers.hashing import text_sha256, tokenizer_sha256

PLACE = "random_init"  # a folder of the outputs


def random_models(pair: PretrainedPair, shapes: Mapping[str, Any], *, weights: bool) -> dict[str, Path]:
    """Role -> a model folder of that checkpoint's shape with random weights, made where it is not there yet.

    Args:
        shapes: role -> fields of a config.json; for a checkpoint that is not on this machine.
        weights: false: config.json and tokenizer alone, where there is nothing.

    Raises:
        UserError: when nothing says a shape, or there is no tokenizer.
    """
    quiet_libraries()
    tokenizer = _tokenizer(pair)
    return {role: _folder(pair, role, shapes.get(role), tokenizer, weights=weights) for role in ("teacher", "student")}


def random_mark(pair: Any) -> dict[str, bool]:
    """What run.json says of a run on such models, and of no other."""
    return {"random_init": True} if getattr(pair, "random_init", False) else {}


def is_random(reference: str) -> bool:
    """Whether a reference is a folder that was made here."""
    return Path(reference).parent.name == PLACE


def _tokenizer(pair: PretrainedPair) -> Any:
    if pair.tokenizer is not None:
        return load_tokenizer(pair.tokenizer, key="pair.tokenizer")
    try:
        return load_tokenizer(pair.student, key="pair.student")
    except UserError as error:
        raise UserError(
            f"pair.random_init=true: the tokenizer of {pair.student} is not on this machine; type "
            "pair.tokenizer=FOLDER, one with its tokenizer.json"
        ) from error


def _folder(pair: PretrainedPair, role: str, known: Any, tokenizer: Any, *, weights: bool) -> Path:
    reference = getattr(pair, role)
    shape = shape_at_hand(reference) or known
    if shape is None:
        raise UserError(
            f"pair.random_init=true: {reference} has no config.json on this machine, and no shape in "
            f"conf/pair/_shapes.yaml for the {role} of {pair.name}; type pair.{role}=FOLDER with its config.json"
        )
    dtype = pair.teacher_dtype if role == "teacher" else "fp32"
    told = json.dumps([shape, pair.layers, dtype, tokenizer_sha256(tokenizer)], sort_keys=True)
    outputs = Path(os.environ.get("KDRUN_OUTPUTS", "outputs"))
    folder = outputs / PLACE / f"{pair.name}-{role}-{text_sha256(told)[:12]}"
    with claim(folder):
        if any(folder.glob("*.safetensors")) or (folder.exists() and not weights):
            return folder
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        write_shape(shape, aside, layers=pair.layers)
        tokenizer.save_pretrained(aside)
        if weights:
            write_weights(aside, dtype=dtype)
        replace_folder(aside, folder)
    return folder
