"""Models of a checkpoint's shape with random weights: to try a run where the checkpoint is not, or is too large."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.models.loading import DTYPES, locate


def shape_at_hand(reference: str) -> dict[str, Any] | None:
    """The content of a checkpoint's config.json, where it is a folder or in the hub's cache; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from transformers import PretrainedConfig

    if Path(reference).is_dir():
        return PretrainedConfig.get_config_dict(locate(reference, key="pair"))[0]
    try:
        found = try_to_load_from_cache(reference, "config.json")
    except HFValidationError:  # a run directory that is not there yet
        return None
    return PretrainedConfig.get_config_dict(Path(found).parent)[0] if isinstance(found, str) else None


def write_shape(shape: Mapping[str, Any], folder: Path, *, layers: int | None) -> None:
    """Write the config.json of a model of this shape, of at most so many layers."""
    from transformers import AutoConfig

    fields = {name: value for name, value in shape.items() if name not in ("layer_types", "dtype", "torch_dtype")}
    config = AutoConfig.for_model(**fields)
    if layers is not None:
        key = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        config = AutoConfig.for_model(**fields | {key: min(layers, config.num_hidden_layers)})
    config.save_pretrained(folder)


def write_weights(folder: Path, *, dtype: str) -> None:
    """Write random weights beside a config.json: always the same ones, for they stand for a checkpoint's; the global
    random state is left as it was."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        AutoModelForCausalLM.from_config(config, dtype=getattr(torch, DTYPES[dtype])).save_pretrained(folder)
