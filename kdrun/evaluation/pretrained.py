"""A checkpoint that scores texts, whatever the score: found, checked for missing weights, measured, hashed.

transformers lets several mistakes pass without a word (weights newly initialised, a text longer than the positions);
each is made impossible or refused here.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.untrusted import check_model_config, check_model_folder, shard_names

NO_LIMIT = 1_000_000  # a tokenizer without model_max_length says 1e30


@dataclass(frozen=True)
class ModelKey:
    """The key that names such a model: what kind it must be, a value that always works, and the class of transformers
    that loads it, for the messages."""

    key: str
    kind: str
    instead: str
    loader: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in float32 with its tokenizer, the tokens that a text may have, and what the run record says."""

    model: Any
    tokenizer: Any
    max_length: int
    weights_sha256: str
    revision: str | None  # the commit of a hub name, None for a folder


def find_checkpoint(name: str, where: ModelKey) -> str:
    """Return what from_pretrained takes: a folder's path, or a hub name as it is. Reads no weight."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{where.key}={name}: no config.json in this folder; give the folder of {where.kind}")
        check_model_folder(folder, key=f"{where.key}={name}", loader=where.loader)
        return str(folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(
            f"{where.key}={name}: no such folder; give a local folder, a hub name, or type {where.key}={where.instead}"
        )
    return name


def load_checkpoint(
    name: str, source: str, where: ModelKey, *, unused: str, tokenizer_for: Callable[[Any], Any]
) -> Checkpoint:
    """Return the checkpoint that `find_checkpoint` found at `source`, its class read in config.json and never the name.

    `unused` begins the names of weights that no score needs and that may be missing. `tokenizer_for` makes the
    tokenizer for a config, which it may change before the weights are read. Raises UserError when the model cannot be
    had, lacks weights, or nothing says how long a text may be.
    """
    import transformers

    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            check_model_config(config, key=f"{where.key}={name}")
            tokenizer = tokenizer_for(config)
            model, info = getattr(transformers, where.loader).from_pretrained(
                source, config=config, output_loading_info=True, dtype="float32", trust_remote_code=False,
                use_safetensors=True if Path(source).is_dir() else None,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise _not_loaded(name, source, error, where) from error
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(unused)):
        raise UserError(
            f"{where.key}={name}: {len(missing)} weights are not in the checkpoint and would be random "
            f"(first: {missing[0]}); give the folder of a whole {config.model_type} model"
        )
    max_length = _longest_text(name, model, tokenizer, where)
    folder = _folder_read(source)
    return Checkpoint(
        model, tokenizer, max_length, _sha256_of_weights(folder), None if Path(source).is_dir() else folder.name
    )


def _not_loaded(name: str, source: str, error: Exception, where: ModelKey) -> UserError:
    """The error to raise when transformers could not load `source`: in one line, with what to do."""
    if Path(source).is_dir():
        cause = str(error).partition("\n")[0]
        return UserError(
            f"{where.key}={name}: transformers cannot load this folder ({cause}); give that of {where.kind}"
        )
    return UserError(
        f"{where.key}={name}: not in the local cache, and not to be had from the Hugging Face Hub (offline or no such "
        f"model); type hf download {name} where there is a network, or {where.key}={where.instead} or =FOLDER"
    )


def _longest_text(name: str, model: Any, tokenizer: Any, where: ModelKey) -> int:
    """Return how many tokens a text may have, start and end included; longer texts are cut.

    The tokenizer's word alone is not enough: saved without model_max_length it says 1e30, and the run dies of it.
    """
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and positions > 0:
        # RoBERTa counts positions from padding_idx + 1: 514 positions hold 512 tokens.
        tables = [m for key, m in model.named_modules() if key.endswith("position_embeddings")]
        offsets = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
        limits.append(positions - max(offsets, default=0))
    if min(limits) > NO_LIMIT:
        raise UserError(
            f"{where.key}={name}: neither tokenizer nor config says how long a text may be; "
            "set model_max_length in tokenizer_config.json"
        )
    return int(min(limits))


def _folder_read(source: str) -> Path:
    """Return `source` itself, or the snapshot of a hub name in the local cache; the commit is its name."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    return Path(str(try_to_load_from_cache(source, "config.json"))).parent


def _sha256_of_weights(folder: Path) -> str:
    """Return the SHA-256 of the weights file; of a sharded model, of its shards joined in the order of their names."""
    for stem in ("model.safetensors", "pytorch_model.bin"):  # the order in which transformers looks
        index = folder / f"{stem}.index.json"
        if (folder / stem).is_file():
            names = [stem]
        elif index.is_file():
            names = shard_names(index, key=str(folder))
        else:
            continue
        digest = hashlib.sha256()
        for name in names:
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()
    raise FileNotFoundError(f"{folder}: neither model.safetensors nor pytorch_model.bin, yet weights were loaded")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep loading off the terminal: transformers' report of weights not used, bars, retries, deprecations.

    What matters in the report, weights that are missing, is checked by `load_checkpoint`.
    """
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "matplotlib")]
    levels = [logger.level for logger in loggers]
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
