"""The study group: one section a study. Settings only; claims and how they are judged stand in kdrun/studies/."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from kdrun.config.losses import LOSS_SECTIONS, Distillation
from kdrun.config.section import Count, CountOrZero, Finite, Name, OpenShare, Positive, Section

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
                at = fault.get("ctx", {}) if not fault["loc"] else {"key": fault["loc"][0], "input": fault["input"]}
                raise ValueError(f"study.losses: {name} with {at['key']}={at['input']}: {said}") from error
    return spec


StudyLoss = Annotated[str | dict[str, Any], AfterValidator(_known_loss)]
Losses = Annotated[tuple[StudyLoss, ...], Field(min_length=1)]


def _compares_forward_and_reverse(losses: tuple[Any, ...]) -> None:
    names = [spec if isinstance(spec, str) else spec["name"] for spec in losses]
    for name in ("fkl", "rkl"):
        if names.count(name) != 1:
            raise ValueError(f"study.losses={list(losses)}: must hold {name} once: the claims compare fkl and rkl")


def _grows(key: str, values: tuple[float, ...]) -> None:
    if list(values) != sorted(set(values)):
        raise ValueError(f"study.{key}={list(values)}: must grow from each to the next")


class ToyStudy(Section):
    """Free logits fitted to distributions on a line (AKL paper, Figures 2 and 3). An epoch is one update."""

    name: Literal["toy"]
    losses: Losses
    seed: CountOrZero
    num_starts: Count
    modes_learning_rate: Positive
    modes_epochs: Annotated[tuple[Count, ...], Field(min_length=1)]
    tail_learning_rate: Positive
    tail_epochs: Annotated[tuple[Count, ...], Field(min_length=2)]
    tail_steps: Count
    other_learning_rates: tuple[Positive, ...]
    # nearer to 1 the head is everything
    mus: Annotated[tuple[Annotated[float, Field(gt=0, le=0.9999)], ...], Field(min_length=1)]
    thresholds: tuple[OpenShare, ...]
    far_tail_from: Annotated[int, Field(ge=1, le=79)]

    @model_validator(mode="after")
    def fits_its_figures(self) -> Self:
        _compares_forward_and_reverse(self.losses)
        for key in ("modes_epochs", "tail_epochs"):
            _grows(key, getattr(self, key))
        if self.tail_epochs[-1] > self.tail_steps:
            raise ValueError(
                f"study.tail_steps={self.tail_steps}: must be at least {self.tail_epochs[-1]}, the last of "
                "study.tail_epochs"
            )
        return self


class GaussiansStudy(Section):
    """One Gaussian, and a mixture of two, fitted to a mixture of two from a grid of starts. The line is [-8, 8]."""

    name: Literal["gaussians"]
    losses: Losses
    teacher_means: tuple[Finite, Finite]
    teacher_sigma: Annotated[float, Field(ge=0.1, le=2)]
    start_means: Annotated[tuple[Annotated[float, Field(ge=-8, le=8)], ...], Field(min_length=2)]
    start_sigmas: Annotated[tuple[Annotated[float, Field(ge=0.1, le=8)], ...], Field(min_length=1)]
    start_half_gaps: Annotated[tuple[Annotated[float, Field(ge=0, le=8)], ...], Field(min_length=2)]
    near: OpenShare
    learning_rate: Positive
    num_steps: Count

    @model_validator(mode="after")
    def is_on_the_line(self) -> Self:
        _compares_forward_and_reverse(self.losses)
        left, right = self.teacher_means
        if left >= right:
            raise ValueError(f"study.teacher_means={[left, right]}: must be the left mode, then the right one")
        if max(-left, right) + 3 * self.teacher_sigma > 8:
            raise ValueError(
                f"study.teacher_means={[left, right]}: must leave 3 study.teacher_sigma={self.teacher_sigma:g} to the "
                "ends of the line, -8 and 8"
            )
        for key in ("start_means", "start_sigmas", "start_half_gaps"):
            _grows(key, getattr(self, key))
        return self


class RankStudy(Section):
    """A linear map fitted to a teacher of given rank, from near-uniform to peaked starts.

    init_std, teacher_std: standard deviation of the weights, 64 x 64. contexts: new ones at every step, or 64 for good.
    """

    name: Literal["rank"]
    losses: Losses
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1)]
    init_std: Annotated[tuple[Positive, ...], Field(min_length=2)]
    teacher_std: Positive
    contexts: Literal["fresh", "fixed"]
    num_seeds: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    num_steps: Annotated[int, Field(ge=10)]
    seed: CountOrZero

    @model_validator(mode="after")
    def compares_starts(self) -> Self:
        _compares_forward_and_reverse(self.losses)
        for key in ("ranks", "init_std"):
            _grows(key, getattr(self, key))
        return self


class TheoryStudy(Section):
    """Proven statements in float64 on random pairs. scales: standard deviations of normal teacher logits."""

    name: Literal["theory"]
    num_pairs: Annotated[int, Field(ge=2)]
    num_classes: Annotated[tuple[Annotated[int, Field(ge=2, le=100_000)], ...], Field(min_length=1)]
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=64)], ...], Field(min_length=1)]
    num_starts: Count
    tolerance: Positive
    seed: CountOrZero


class LossesStudy(Section):
    """Value and gradient of every loss on the simplex and along paths; their limits; the size of their gradients."""

    name: Literal["losses"]
    losses: Losses
    seed: CountOrZero
    likely: Annotated[tuple[OpenShare, ...], Field(min_length=1, max_length=3)]
    teacher: tuple[OpenShare, OpenShare, OpenShare]
    vocabulary: Annotated[int, Field(ge=3)]
    num_pairs: Count
    noises: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=4)]
    sweep: Annotated[tuple[OpenShare, ...], Field(min_length=3)]

    @model_validator(mode="after")
    def can_be_drawn(self) -> Self:
        first, second, third = self.teacher
        if not first > second > third or abs(sum(self.teacher) - 1) > 1e-6:
            raise ValueError(f"study.teacher={list(self.teacher)}: must fall from class to class and sum to 1")
        _grows("sweep", self.sweep)
        if list(self.noises) != sorted(set(self.noises), reverse=True):
            raise ValueError(f"study.noises={list(self.noises)}: must fall from each to the next")
        return self


class HeadtailStudy(Section):
    """Head and tail gaps of real distillations against steps. runs: a folder of finished runs; null: made first."""

    name: Literal["headtail"]
    runs: str | None
    part: Literal["valid", "train"]
    windows: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]


Study = Annotated[
    ToyStudy | GaussiansStudy | RankStudy | TheoryStudy | LossesStudy | HeadtailStudy, Field(discriminator="name")
]


class StudyConfig(Section):
    """`kdrun study WHICH`."""

    name: Name
    strict: bool
    study: Study
