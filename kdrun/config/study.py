"""The study group: one section a study. Settings only; claims and how they are judged stand in kdrun/studies/."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from kdrun.config.losses import LOSS_SECTIONS, Distillation
from kdrun.config.section import CountOrZero, Name, Section

SECTIONS = {section.model_fields["name"].annotation.__args__[0]: section for section in LOSS_SECTIONS[1:]}  # type: ignore[union-attr]


def _known_loss(spec: str | dict[str, Any]) -> str | dict[str, Any]:
    """A divergence by name, or {name: akl, mu: 0.3}; parameters that are not given have the loss's own defaults."""
    given = {"name": spec} if isinstance(spec, str) else spec
    name = given.get("name")
    if name not in SECTIONS:
        raise ValueError(f"study.losses: {name!r} is no divergence; one of {', '.join(SECTIONS)}")
    known = [key for key in SECTIONS[name].model_fields if key not in {"name", *Distillation.model_fields}]
    for key in given:
        if key not in {"name", *known}:
            raise ValueError(f"study.losses: {name} has no {key}; it takes {', '.join(known) or 'no parameter'}")
    try:
        SECTIONS[name].model_validate({"kd_ratio": 1, "temperature": 1, "temperature_squared": True, **given})
    except ValidationError as error:
        for fault in error.errors():
            if fault["type"] != "missing":
                said = fault["msg"][0].lower() + fault["msg"][1:]
                raise ValueError(f"study.losses: {name} with {fault['loc'][0]}={fault['input']}: {said}") from error
    return spec


StudyLoss = Annotated[str | dict[str, Any], AfterValidator(_known_loss)]
Losses = Annotated[tuple[StudyLoss, ...], Field(min_length=1)]


class ToyStudy(Section):
    """Free logits fitted to distributions on a line (AKL paper, Figures 2 and 3)."""

    name: Literal["toy"]
    losses: Losses
    seed: CountOrZero


class GaussiansStudy(Section):
    """One Gaussian, and a mixture of two, fitted to a mixture of two from a grid of starts."""

    name: Literal["gaussians"]
    losses: Losses


class RankStudy(Section):
    """A linear map fitted to a teacher of given rank, from peaked and from near-uniform starts."""

    name: Literal["rank"]
    losses: Losses
    seed: CountOrZero


class TheoryStudy(Section):
    """Proven statements in float64 on random pairs."""

    name: Literal["theory"]
    seed: CountOrZero


class LossesStudy(Section):
    """Value and gradient of every loss on the simplex and along paths; their limits; the size of their gradients."""

    name: Literal["losses"]
    losses: Losses
    seed: CountOrZero


class HeadtailStudy(Section):
    """Head and tail gaps of real distillations against steps. runs: a folder of finished runs; null: made first."""

    name: Literal["headtail"]
    runs: str | None


Study = Annotated[
    ToyStudy | GaussiansStudy | RankStudy | TheoryStudy | LossesStudy | HeadtailStudy, Field(discriminator="name")
]


class StudyConfig(Section):
    """`kdrun study WHICH`."""

    name: Name
    strict: bool
    study: Study
