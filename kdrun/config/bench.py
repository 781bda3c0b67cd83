"""The bench group: one section a benchmark. Sizes and repetitions only; what competes is in kdrun/bench/."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.section import Count, CountOrZero, Name, NonNegative, OpenShare, Positive, Section

KnownLoss = Literal["fkl", "rkl", "fkl_rkl", "akl", "jsd", "tvd", "skl", "srkl", "ab", "alpha", "taid", "amid", "gap"]


class Measured(Section):
    """What every benchmark shares. Every contestant is called once a round; threads null: as many as torch takes.

    only: the contestants whose names contain one of these words; null: all.
    """

    repetitions: Count
    memory: bool
    only: tuple[str, ...] | None
    threads: Count | None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class Curve(Measured):
    """A benchmark that is drawn against a size, too; curve: its values, [] for none."""

    curve: tuple[Count, ...]
    curve_repetitions: Count


class LossBench(Curve):
    """Logits in memory; stds are of the teacher's logits, noise is what the student differs by, in the same unit."""

    name: Literal["loss"]
    rows: Count
    vocabulary: Annotated[int, Field(ge=2)]
    stds: Annotated[tuple[Positive, ...], Field(min_length=1)]
    noise: NonNegative
    curve_rows: Count


class ObjectiveBench(Curve):
    """Hidden states and heads in memory."""

    name: Literal["objective"]
    tokens: Count
    vocabulary: Annotated[int, Field(ge=2)]
    student_width: Count
    teacher_width: Count
    precision: Literal["fp32", "bf16"]
    losses: Annotated[tuple[KnownLoss, ...], Field(min_length=1)]
    peer_losses: tuple[Literal["fkl", "rkl", "jsd", "akl"], ...]
    compiled: bool

    @model_validator(mode="after")
    def peers_have_one_of_ours(self) -> Self:
        if alone := [name for name in self.peer_losses if name not in self.losses]:
            raise ValueError(
                f"bench.peer_losses={list(self.peer_losses)}: {alone[0]} must be among bench.losses={list(self.losses)}"
            )
        return self


class DataBench(Measured):
    """Random models on real texts. data: docstrings, unicode or a JSON-lines file, of which max_rows are taken;
    tokenizer null: made from the data."""

    data: str
    max_rows: Count
    tokenizer: str | None
    vocabulary: Annotated[int, Field(ge=2)]
    max_prompt_tokens: Count


class PairBench(DataBench):
    """Training of a pair of random models."""

    student_layers: Count
    student_width: Count
    student_heads: Count
    teacher_layers: Count
    teacher_width: Count
    teacher_heads: Count
    max_tokens: Annotated[int, Field(ge=2)]
    batch_size: Count
    precision: Literal["fp32", "bf16"]

    @model_validator(mode="after")
    def sizes_fit(self) -> Self:
        if self.max_prompt_tokens >= self.max_tokens:
            raise ValueError(
                f"bench.max_prompt_tokens={self.max_prompt_tokens}: must be below bench.max_tokens={self.max_tokens}, "
                "or no response fits"
            )
        for role in ("teacher", "student"):
            width, heads = getattr(self, f"{role}_width"), getattr(self, f"{role}_heads")
            if width % heads:
                raise ValueError(f"bench.{role}_heads={heads}: must divide bench.{role}_width={width}")
        return self


class StepBench(PairBench):
    """Whole optimiser steps, in turns with other trainers."""

    name: Literal["step"]


class RolloutBench(PairBench):
    """On-policy steps and their parts; max_new_tokens: of every text."""

    name: Literal["rollout"]
    max_new_tokens: Count

    @model_validator(mode="after")
    def texts_fit(self) -> Self:
        if self.max_prompt_tokens + self.max_new_tokens > self.max_tokens:
            raise ValueError(
                f"bench.max_new_tokens={self.max_new_tokens}: with bench.max_prompt_tokens={self.max_prompt_tokens} it "
                f"must be at most bench.max_tokens={self.max_tokens}"
            )
        return self


class CacheBench(PairBench):
    """Epochs from a teacher cache and live; mus: the values of the sweep that shares one cache."""

    name: Literal["cache"]
    mus: Annotated[tuple[OpenShare, ...], Field(min_length=2)]


class GenerateBench(DataBench):
    """Texts of the lengths of the data's responses. batch_sizes: of ours, and the last one of generate on sorted
    prompts; usual_batch_size: of generate as it is used. temperature 0: greedy."""

    name: Literal["generate"]
    layers: Count
    width: Count
    heads: Count
    max_new_tokens: Count
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)]
    usual_batch_size: Count
    temperature: NonNegative

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"bench.heads={self.heads}: must divide bench.width={self.width}")
        return self


class StartupBench(Measured):
    """Commands in fresh processes."""

    name: Literal["startup"]


Bench = Annotated[
    LossBench | ObjectiveBench | StepBench | RolloutBench | CacheBench | GenerateBench | StartupBench,
    Field(discriminator="name"),
]


class BenchConfig(Section):
    """`kdrun bench WHICH`."""

    seed: CountOrZero
    name: Name
    bench: Bench
