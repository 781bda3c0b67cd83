"""What a run may be told: every key, its type and its range. The values themselves stand in conf/, none here.

Unknown keys and missing keys are errors; a validated config is frozen. Nothing here imports torch or Hydra, so that a
typing error is answered at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


class Section(BaseModel):
    """A node of the config: closed, frozen, nothing coerced to finite silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# -- loss -------------------------------------------------------------------------------------------------------------


class SFT(Section):
    """Cross-entropy on the data; no teacher."""

    name: Literal["sft"]


class Distillation(Section):
    """What every divergence shares: (1 - kd_ratio) cross-entropy + kd_ratio T^2 divergence."""

    kd_ratio: Share
    temperature: Positive
    temperature_squared: bool


class FKL(Distillation):
    """Forward KL."""

    name: Literal["fkl"]


class RKL(Distillation):
    """Reverse KL."""

    name: Literal["rkl"]


class FKLRKL(Distillation):
    """weight FKL + (1 - weight) RKL."""

    name: Literal["fkl_rkl"]
    weight: Share


class AKL(Distillation):
    """Adaptive KL (arXiv 2404.02657); mu is the share of the teacher's mass that is head."""

    name: Literal["akl"]
    mu: OpenShare
    head: Literal["code", "paper", "pointwise"]
    reversed: bool


class JSD(Distillation):
    """Generalised Jensen-Shannon divergence; 0 means FKL, 1 means RKL."""

    name: Literal["jsd"]
    beta: Share


class TVD(Distillation):
    """Total variation distance."""

    name: Literal["tvd"]


class SKL(Distillation):
    """Skewed KL (DistiLLM)."""

    name: Literal["skl"]
    alpha: Share


class SRKL(Distillation):
    """Skewed reverse KL (DistiLLM)."""

    name: Literal["srkl"]
    alpha: Share


class AB(Distillation):
    """Alpha-beta divergence (ABKD)."""

    name: Literal["ab"]
    alpha: Finite
    beta: Finite


class Alpha(Distillation):
    """Alpha-divergence."""

    name: Literal["alpha"]
    alpha: Finite


class TAID(Distillation):
    """FKL to a target between student and teacher."""

    name: Literal["taid"]
    t_start: Share
    t_end: Share
    alpha: NonNegative
    beta: Share


class AMiD(Distillation):
    """A base divergence with the alpha-mixture as assistant."""

    name: Literal["amid"]
    alpha: Finite
    lam: Share
    base: Literal["fkl", "rkl", "ab"]
    order: Literal["pr", "qr", "rp", "rq"]


class Gap(Distillation):
    """Gaps on the teacher's head and tail."""

    name: Literal["gap"]
    head_weight: NonNegative
    tail_weight: NonNegative
    mu: OpenShare


Loss = Annotated[
    SFT | FKL | RKL | FKLRKL | AKL | JSD | TVD | SKL | SRKL | AB | Alpha | TAID | AMiD | Gap,
    Field(discriminator="name"),
]
LOSS_SECTIONS: tuple[type[Section], ...] = (
    SFT, FKL, RKL, FKLRKL, AKL, JSD, TVD, SKL, SRKL, AB, Alpha, TAID, AMiD, Gap,
)  # fmt: skip
# Every parameter of a loss may be typed without its prefix: mu=0.5 is loss.mu=0.5.
SHORT_KEYS: frozenset[str] = frozenset(key for loss in LOSS_SECTIONS for key in loss.model_fields) - {"name"}


def loss_parameters(loss: Section) -> dict[str, Any]:
    """The keyword arguments of `make_loss` in a loss section: what is neither its name nor the objective's."""
    return loss.model_dump(exclude={"name", *Distillation.model_fields})


# -- pair -------------------------------------------------------------------------------------------------------------


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
    """Two checkpoints: hub names, local folders or run directories. `sft` is a published fine-tuned student, if any."""

    kind: Literal["pretrained"]
    name: Name
    teacher: str
    student: str
    sft: str | None
    teacher_dtype: Literal["fp32", "bf16", "fp16"]
    trust_remote_code: bool


Pair = Annotated[ScratchPair | PretrainedPair, Field(discriminator="kind")]


# -- data -------------------------------------------------------------------------------------------------------------


class Text(Section):
    """What every data set shares: how an example becomes tokens."""

    template: Literal["plain", "alpaca", "chat"]
    max_prompt_tokens: Count
    max_tokens: Annotated[int, Field(ge=2)]
    overlong: Literal["drop", "truncate"]
    max_rows: Count | None

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


# -- train, eval, track -----------------------------------------------------------------------------------------------


class Train(Section):
    """One optimisation. Durations are in optimiser steps; a batch is the rows of one optimiser step on all ranks, a
    micro-batch the most rows of one forward pass."""

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
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    chunk_tokens: Count | None
    log_every: Count
    valid_every: Count | None
    valid_rows: Count
    watch_teacher: bool
    save_every: Count | None
    keep_checkpoints: Count
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class Evaluation(Section):
    """How a model is evaluated. `greedy` decodes once without sampling; each of `seeds` samples once."""

    name: Name
    split: Literal["valid", "test"]
    num_examples: Count | None
    greedy: bool
    seeds: tuple[CountOrZero, ...]
    temperature: Positive
    top_k: CountOrZero
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Positive
    no_repeat_ngram_size: CountOrZero
    max_new_tokens: Count
    batch_size: Count
    bertscore: bool
    bertscore_model: str
    bertscore_layer: Count
    bertscore_baseline: str | None

    @model_validator(mode="after")
    def seeds_are_distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"eval.seeds={list(self.seeds)}: the same seed twice counts one sample twice")
        return self


class Track(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None


# -- the commands -----------------------------------------------------------------------------------------------------


class TrainConfig(Section):
    """`kdrun train` and every cell of `kdrun sweep`."""

    role: Literal["student", "teacher"]
    seed: CountOrZero
    name: Name
    resume: str | None
    evaluate: bool
    pair: Pair
    loss: Loss
    data: Data
    train: Train
    eval: Evaluation
    track: Track

    @model_validator(mode="after")
    def teacher_is_fine_tuned(self) -> Self:
        if self.role == "teacher" and self.loss.name != "sft":
            raise ValueError(f"loss={self.loss.name}: a teacher is fine-tuned, so role=teacher needs loss=sft")
        if isinstance(self.pair, ScratchPair) and self.data.max_tokens > self.pair.context:
            raise ValueError(
                f"data.max_tokens={self.data.max_tokens}: must be at most pair.context={self.pair.context}, "
                "the positions that the models have"
            )
        return self


class EvaluateConfig(Section):
    """`kdrun evaluate`: exactly one of run=DIR, student=PATH or pair=NAME says what is evaluated."""

    run: str | None
    student: str | None
    teacher: str | None
    role: Literal["student", "teacher", "sft"]
    seed: CountOrZero
    name: Name
    pair: Pair | None
    data: Data | None
    eval: Evaluation
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    track: Track

    @model_validator(mode="after")
    def one_subject(self) -> Self:
        given = [key for key in ("run", "student", "pair") if getattr(self, key) is not None]
        if len(given) != 1:
            said = " and ".join(f"{key}=" for key in given) or "none of them"
            raise ValueError(f"evaluate needs exactly one of run=DIR, student=PATH, pair=NAME ({said} given)")
        if self.run is None and self.data is None:
            raise ValueError("data: say which set, for example data=unicode or data=jsonl data.path=FILE")
        if self.role == "sft" and self.pair is None:
            raise ValueError("role=sft: only with pair=NAME, whose `sft` names a published fine-tuned student")
        return self


CONFIGS: dict[str, type[Section]] = {"train": TrainConfig, "evaluate": EvaluateConfig}
