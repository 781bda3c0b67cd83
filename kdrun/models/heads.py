"""A causal language model as a body and a head, so that only scored positions meet the vocabulary.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import UserError


@dataclass(frozen=True)
class Head:
    """logits = softcap tanh(scale (h W' + b) / softcap), or scale (h W' + b) without a soft-cap."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        logits = nn.functional.linear(hidden, self.weight_VD, self.bias_V) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def cut(self, rows: int) -> Head:
        """The head of the first `rows` vocabulary entries."""
        if rows == self.weight_VD.shape[0]:
            return self
        bias = None if self.bias_V is None else self.bias_V[:rows]
        return Head(self.weight_VD[:rows], bias, self.scale, self.softcap)


def head_of(model: Any) -> Head:
    """The output head of a transformers causal language model, with the scale and soft-cap that its config names."""
    layer, config = model.get_output_embeddings(), model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
    return Head(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))


def body_of(model: Any) -> nn.Module:
    """The model without its head; its last hidden state is what the head sees."""
    return model.base_model


def hidden_states(model: Any, ids_BT: Tensor) -> Tensor:
    """Hidden states [B, T, D] after the final norm. Rows are right-padded: a causal model's scored positions, which
    all come before the padding, do not see it, so no attention mask is needed (and the fast causal kernel is used)."""
    hidden: Tensor = body_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden


def scored_hidden_states(
    model: Any,
    groups: Iterable[tuple[Tensor, Tensor]],
    *,
    pass_of: Callable[[Any, Tensor], Tensor] = hidden_states,
) -> Tensor:
    """Hidden states [N, D] at flat positions index_N of each group's ids_BT, one pass of the body a group."""
    return torch.cat([pass_of(model, ids_BT).flatten(0, 1)[index_N] for ids_BT, index_N in groups])


@torch.no_grad()
def check_head(model: Any, ids_BT: Tensor, *, name: str) -> float:
    """Largest difference, relative to the logits' spread, between head(hidden) and the model's own logits.

    Raises:
        UserError: when they differ by more than 1e-3 (5e-2 for 16-bit weights): this architecture's head is not a
            plain projection, so kdrun would distil something else.
    """
    training = model.training
    model.eval()
    own = model(input_ids=ids_BT, use_cache=False).logits.float()
    made = head_of(model)(hidden_states(model, ids_BT)).float()
    model.train(training)
    if not own.isfinite().all():
        raise UserError(
            f"{name}: its logits are NaN or infinite on the first rows: a broken checkpoint, or too large for fp16"
        )
    if own.shape != made.shape:
        raise UserError(f"{name}: head gives {tuple(made.shape)} logits, the model {tuple(own.shape)}; not supported")
    # over `made`: with [rows, T, 150,000] entries a copy is gigabytes
    difference = float(made.sub_(own).abs_().max() / own.std().clamp_min(1e-6))
    allowed = 1e-3 if own.dtype == torch.float32 and head_of(model).weight_VD.dtype == torch.float32 else 5e-2
    if not difference <= allowed:
        raise UserError(
            f"{name}: head(hidden) differs from the model's own logits by {difference:.3g} of their spread "
            f"(allowed {allowed}): this architecture ({type(model).__name__}) is not supported"
        )
    return difference
