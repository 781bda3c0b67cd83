"""What a model's folder says of itself: its config, the headers of its weights and its tokenizer agree.

Read without torch and without the weights, in some milliseconds, so that a damaged folder is refused before a run
begins. What only the architecture's own code can tell (a missing tensor of an unusual model) is found at loading.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.models.loading import TOKENIZER_FILES, locate
from kdrun.untrusted import is_plain_name, shard_names

CONFIG = "config.json"
# The names that a size has in one architecture or another.
WIDTH, LAYERS = ("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers")
HEADS, POSITIONS = ("num_attention_heads", "n_head"), ("max_position_embeddings", "n_positions")
SIZES = (*WIDTH, *LAYERS, *HEADS, *POSITIONS, "vocab_size")
# Architectures whose layers hold tensors of the same names and shapes.
ALIKE = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
OTHER_TASKS = re.compile(r"For(MaskedLM|\w*Classification|QuestionAnswering|MultipleChoice|PreTraining)$")

Shapes = dict[str, tuple[int, ...]]


def check_model(reference: str, *, key: str, max_tokens: int | None = None, bodiless: bool = False) -> None:
    """Look over the folder that a reference means; a hub name is not looked at.

    Args:
        max_tokens: longest row that the model will be given; None does not check.
        bodiless: a folder without weights is as good, for a cache holds what they would say.

    Raises:
        UserError: naming `key` and the file.
    """
    folder, at = Path(locate(reference, key=key)), f"{key}={reference}"
    if not folder.is_dir():
        return
    config = read_object(folder / CONFIG, key=at)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    _check_config(config, text, f"{at}: {folder / CONFIG}")
    positions = _size(text, POSITIONS)
    if max_tokens is not None and positions is not None and max_tokens > positions:
        raise UserError(f"data.max_tokens={max_tokens}: {at} has {positions} positions; lower it")
    if not bodiless or any(folder.glob("*.safetensors*")):
        _check_weights(tensor_shapes(folder, key=at), text, f"{at}: {folder / CONFIG}")
    check_tokenizer(folder, key=at, rows=_size(text, ("vocab_size",)))


def read_object(path: Path, *, key: str) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        UserError: naming `key` and the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{key}: {path} does not hold a JSON object")
    return content


def _check_config(config: dict[str, Any], text: dict[str, Any], at: str) -> None:
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{at} names no model_type, so it is not the config of a model")
    if config.get("is_encoder_decoder"):
        raise UserError(f"{at} is of an encoder-decoder ({config['model_type']}); give a causal language model")
    named = config.get("architectures")
    if isinstance(named, list) and any(OTHER_TASKS.search(str(name)) for name in named):
        raise UserError(f"{at} is of {', '.join(map(str, named))}; give a causal language model")
    for name in SIZES:
        value = text.get(name, 1)
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{at} says {name}={json.dumps(value)}; must be a whole number above 0")
    width, heads = _size(text, ("n_embd",)), _size(text, ("n_head",))
    if width and heads and width % heads:
        raise UserError(f"{at} says n_head={heads}, which does not divide n_embd={width}")


def _size(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if name in config), None)


def tensor_shapes(folder: Path, *, key: str) -> Shapes:
    """Tensor -> shape, from the headers of the safetensors files.

    Raises:
        UserError: naming `key` and the file that is missing, cut short or not safetensors.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"] if not index.exists() else shard_names(index, key=key)
    if not names or not (index.exists() or (folder / names[0]).exists()):
        raise UserError(f"{key}: {folder} holds no weights (model.safetensors)")
    shapes: Shapes = {}
    for path in (folder / name for name in names if is_plain_name(name)):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises its own
            raise UserError(f"{key}: {path} cannot be read ({' '.join(str(error).split())})") from error
    if not shapes:
        raise UserError(f"{key}: {folder / names[0]} holds no tensor")
    return shapes


def _check_weights(shapes: Shapes, config: dict[str, Any], at: str) -> None:
    """The tensors are those of the config's sizes, as far as the architecture's layers are known to be alike."""
    if config.get("model_type") not in ALIKE:
        return
    width, num_layers = _size(config, WIDTH), _size(config, LAYERS)
    for rows in (name for name in ("vocab_size", "n_positions") if name in config):
        if width and (config[rows], width) not in shapes.values():
            raise UserError(f"{at} says {rows}={config[rows]} and a width of {width}, and no tensor of its "
                            "safetensors has that shape")  # fmt: skip
    layers: dict[str, Shapes] = defaultdict(dict)  # name without the layer -> its shape in each layer
    for name, shape in shapes.items():
        if match := re.match(r"(.*?\.|)(\d+)\.(.+)", name):
            layers[f"{match[1]}N.{match[3]}"][match[2]] = shape
    for name, found in layers.items():
        if num_layers is None or (len(found) == num_layers and len(set(found.values())) == 1):
            continue
        which = next(key for key in LAYERS if key in config)
        raise UserError(f"{at} says {which}={num_layers}, and its safetensors hold {name} {len(found)} times, in "
                        f"{len(set(found.values()))} shapes")  # fmt: skip


def check_tokenizer(folder: Path, *, key: str, rows: int | None) -> None:
    """The tokenizer of a folder can be read, and the model has a row for each of its ids.

    Args:
        rows: of the model's vocabulary.

    Raises:
        UserError: naming `key` and the file.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"{key}: {folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)})")
    settings = folder / "tokenizer_config.json"
    if settings.exists() and read_object(settings, key=key).get("eos_token", "") is None:
        raise UserError(f"{key}: {settings} says eos_token=null: without an end-of-text token no response can end")
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    last = max(read_tokenizer(path, key=key).get_vocab().values(), default=0)
    if rows is not None and last >= rows:
        raise UserError(f"{key}: {path} has a token of id {last}, and config.json says vocab_size={rows}")


def read_tokenizer(path: Path, *, key: str) -> Any:
    """A tokenizer.json, as the library `tokenizers` reads it.

    Raises:
        UserError: naming `key` and the file.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"{key}: {path} cannot be read ({' '.join(str(error).split())})") from error
