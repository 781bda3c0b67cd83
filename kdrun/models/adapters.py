"""LoRA on a causal language model, through peft.

The model itself is changed in place and keeps its class, so that body, head and generation are found in it as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.errors import UserError


class Adapted:
    """A model (`model`, changed in place) whose weights are frozen but for the adapters in it."""

    def __init__(self, peft_model: Any) -> None:
        self._peft, self.model = peft_model, peft_model.get_base_model()

    def save_pretrained(self, folder: Path) -> None:
        """Write the adapters alone: adapter_config.json and adapter_model.safetensors, peft's own format."""
        # "auto" would ask the hub whether the vocabulary has grown.
        self._peft.save_pretrained(folder, save_embedding_layers=False)

    def load(self, folder: Path) -> None:
        """Put adapters back that `save_pretrained` wrote.

        Raises:
            UserError: when there are none, or they are for other layers or another rank.
        """
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        try:
            found: Any = set_peft_model_state_dict(self._peft, load_file(folder / "adapter_model.safetensors"))
            fits = not found.unexpected_keys and not any(".lora_" in name for name in found.missing_keys)
        except (FileNotFoundError, RuntimeError):  # no file; another shape
            fits = False
        if not fits:
            raise UserError(f"adapter: {folder} has none of this rank on these layers; resume with the run's own words")

    def merge(self) -> dict[str, Any]:
        """The weights of the plain model, adapters added to them (in place; the adapters themselves stay)."""
        self._peft.merge_adapter(safe_merge=True)
        weights = self.model.state_dict()
        return {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}


def add_adapter(model: Any, *, r: int, alpha: int, dropout: float, targets: Sequence[str] | None, seed: int) -> Adapted:
    """The model with LoRA in its layers; its logits are as before, for B starts at 0.

    Args:
        targets: names of layers, all-linear alone, or None: peft's own for the architecture.
        seed: of A; the global random state is left as it was.

    Raises:
        UserError: when there is no such layer, or it is the head or the embeddings.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    spelled = f"[{','.join(targets or ())}]"
    chosen: Any = "all-linear" if targets is not None and "all-linear" in targets else targets and list(targets)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, task_type="CAUSAL_LM")
    training = model.training
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPT-2's transposed weights, which peft finds by itself
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"adapter.targets={spelled}: {' '.join(str(error).split())}") from error
    # The loss reads the head's weight, and in many models the embeddings are the head.
    if any(isinstance(part, BaseTunerLayer) for part in (model.get_output_embeddings(), model.get_input_embeddings())):
        raise UserError(f"adapter.targets={spelled}: the head and the embeddings cannot have one; name other layers")
    wrapped.train(training)
    return Adapted(wrapped)
