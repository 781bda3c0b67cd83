"""The output head of a language model: from hidden states to logits, and from their gradient back."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearHead:
    """logits = softcap tanh(x / softcap), x = scale (hidden @ weight.T + bias); or x itself without a soft-cap.

    Shapes: C tokens, D width, V vocabulary.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def to(self, dtype: torch.dtype) -> "LinearHead":
        """The same head for matrix products in dtype."""
        bias_V = None if self.bias_V is None else self.bias_V.to(dtype)
        return replace(self, weight_VD=self.weight_VD.to(dtype), bias_V=bias_V)

    def product(self, hidden_CD: Tensor, out_CV: Tensor) -> Tensor:
        """hidden @ weight.T + bias, written into out, in the dtype of all of them."""
        if self.bias_V is None:
            return torch.mm(hidden_CD, self.weight_VD.T, out=out_CV)
        return torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=out_CV)

    def finish_(self, product_CV: Tensor) -> Tensor:
        """logits_CV in float32 at least, from the product: written over it if it has that dtype, else a copy."""
        logits_CV = product_CV.to(torch.promote_types(product_CV.dtype, torch.float32))
        if self.scale != 1:
            logits_CV *= self.scale
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def through_scale_and_softcap_(self, gradient_CV: Tensor, logits_CV: Tensor | None) -> Tensor:
        """The gradient in `hidden @ weight.T + bias` from that in the logits, written over it.

        The logits are looked at only for a soft-cap.
        """
        if self.softcap is not None and logits_CV is not None:
            gradient_CV *= 1 - (logits_CV / self.softcap) ** 2
        if self.scale != 1:
            gradient_CV *= self.scale
        return gradient_CV
