"""The adapter group: whether all weights are trained, or low-rank additions to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdrun.config.section import Count, Section


class NoAdapter(Section):
    """Every weight is trained."""

    kind: Literal["none"]


class Lora(Section):
    """LoRA (Hu et al., arXiv 2106.09685); with `quantise`, QLoRA (Dettmers et al., arXiv 2305.14314).

    `targets`: names of the layers that get one, [all-linear], or null: peft's own for the architecture.
    """

    kind: Literal["lora"]
    r: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None
    quantise: Literal["4bit", "8bit"] | None


Adapter = Annotated[NoAdapter | Lora, Field(discriminator="kind")]
