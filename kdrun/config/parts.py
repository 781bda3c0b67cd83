"""The groups of a run beside the loss: pair, data, train, track."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.section import Count, CountOrZero, Name, NonNegative, OpenShare, Positive, Section

# -- pair --------------------------------------------------------------------------------------------------------------


class ScratchPair(Section):
    """A GPT-2 shaped pair that kdrun makes itself; the teacher is fine-tuned on the data when there is none yet.

    `teacher` and `student` are model folders or run directories; `student: null` starts from random weights.
    `tokenizer: null` trains a byte-level BPE of `vocab_size` entries on the training data.
    """

    kind: Literal["scratch"]
    name: Name
    teacher: str
    student: str | None
    tokenizer: str | None
    vocab_size: Annotated[int, Field(ge=257)]
    context: Annotated[int, Field(ge=8)]
    teacher_layers: Count
    teacher_width: Count
    teacher_heads: Count
    student_layers: Count
    student_width: Count
    student_heads: Count

    @model_validator(mode="after")
    def heads_divide_width(self) -> Self:
        for role in ("teacher", "student"):
            width, heads = getattr(self, f"{role}_width"), getattr(self, f"{role}_heads")
            if width % heads:
                raise ValueError(f"pair.{role}_heads={heads}: must divide pair.{role}_width={width}")
        return self


class PretrainedPair(Section):
    """Two checkpoints: hub names, local folders or run directories. `sft` is a published fine-tuned student, if any.

    `teacher_bits`: of the teacher's matrices but its head, on a GPU; null: all in teacher_dtype. `random_init`: random
    weights in the checkpoints' shapes, of at most `layers` layers, with the tokenizer in the folder `tokenizer`.
    """

    kind: Literal["pretrained"]
    name: Name
    teacher: str
    student: str
    sft: str | None
    teacher_dtype: Literal["fp32", "bf16", "fp16"]
    teacher_bits: Literal[8, 4] | None = None  # a run of an earlier kdrun has no such key
    trust_remote_code: bool
    random_init: bool = False
    layers: Count | None = None
    tokenizer: str | None = None

    @model_validator(mode="after")
    def only_random_weights_have_other_shapes(self) -> Self:
        for key in ("layers", "tokenizer"):
            if (value := getattr(self, key)) is not None and not self.random_init:
                raise ValueError(
                    f"pair.{key}={value}: the checkpoints say it; leave it out, or type pair.random_init=true"
                )
        return self


Pair = Annotated[ScratchPair | PretrainedPair, Field(discriminator="kind")]


# -- data --------------------------------------------------------------------------------------------------------------


class Text(Section):
    """What every data set shares: how an example becomes tokens; `encoded` is the folder that keeps them, if any.

    `corpus`: plain text (.txt) or JSON lines with "text"; its mean cross-entropy over `corpus_rows` rows of max_tokens
    (null: train.batch_size) is added to every step's total, `corpus_weight` times.
    """

    template: Literal["plain", "alpaca", "chat"]
    max_prompt_tokens: Count
    max_tokens: Annotated[int, Field(ge=2)]
    overlong: Literal["drop", "truncate"]
    max_rows: Count | None
    encoded: str | None
    corpus: str | None
    corpus_weight: Positive
    corpus_rows: Count | None

    @model_validator(mode="after")
    def prompt_leaves_room(self) -> Self:
        if self.max_prompt_tokens >= self.max_tokens:
            raise ValueError(
                f"data.max_prompt_tokens={self.max_prompt_tokens}: must be below data.max_tokens={self.max_tokens}, "
                "or no response fits"
            )
        return self


class EmbeddedData(Text):
    """A set that needs no download."""

    name: Literal["unicode", "docstrings"]


class JsonlData(Text):
    """JSON lines of one's own; splits that are not given are carved from `path`."""

    name: Literal["jsonl"]
    path: str
    valid_path: str | None
    test_path: str | None


class HubData(Text):
    """A hub set, or a local folder of its shape."""

    name: Literal["dolly", "ultrachat"]
    path: str | None
    revision: str | None


Data = Annotated[EmbeddedData | JsonlData | HubData, Field(discriminator="name")]


# -- train, track ------------------------------------------------------------------------------------------------------


class Train(Section):
    """One optimisation. Durations are in optimiser steps; a batch is the rows of one optimiser step on all ranks, a
    micro-batch the most rows of one forward pass; threads those of torch on a CPU."""

    epochs: Positive
    max_steps: Count | None
    batch_size: Count
    micro_batch_size: Count | None
    lr: Positive
    lr_min: NonNegative
    schedule: Literal["cosine", "constant"]
    warmup_steps: CountOrZero
    betas: tuple[OpenShare, OpenShare]
    eps: Positive
    weight_decay: NonNegative
    clip_norm: Positive | None
    precision: Literal["auto", "fp32", "bf16"]
    gradient_checkpointing: bool
    compile: bool
    chunk_tokens: Count | None
    log_every: Count
    valid_every: Count | None
    valid_rows: Count
    watch_teacher: bool
    save_every: Count | None
    keep_checkpoints: Count
    threads: Count | None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class Track(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
