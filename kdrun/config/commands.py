"""One config a command."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.bench import BenchConfig
from kdrun.config.evaluation import Evaluation
from kdrun.config.judge import JudgeConfig
from kdrun.config.losses import Loss
from kdrun.config.parts import Data, Pair, ScratchPair, Track, Train
from kdrun.config.section import CountOrZero, Name, Section
from kdrun.config.study import StudyConfig
from kdrun.config.teacher import CachedTeacher, TeacherSource


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
    teacher: TeacherSource
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

    @model_validator(mode="after")
    def cache_can_serve(self) -> Self:
        if not isinstance(self.teacher, CachedTeacher):
            return self
        if self.role == "teacher":
            raise ValueError("teacher=cached: role=teacher fine-tunes the teacher itself; type teacher=live")
        if self.teacher.topk is not None and (temperature := getattr(self.loss, "temperature", 1)) != 1:
            raise ValueError(
                f"loss.temperature={temperature}: teacher.topk={self.teacher.topk} stores log-probabilities at "
                "temperature 1 only; type loss.temperature=1, or teacher.topk=null for the exact cache"
            )
        if self.teacher.topk is not None and getattr(self.loss, "match_grad_norm", False):
            raise ValueError(
                f"loss.match_grad_norm=true: teacher.topk={self.teacher.topk} stores buckets, whose gradients are not "
                "those in single logits; type loss.match_grad_norm=false, or teacher.topk=null for the exact cache"
            )
        return self


class EvaluateConfig(Section):
    """`kdrun evaluate`: exactly one of run=DIR, student=PATH or pair=NAME says what is evaluated.

    `trust_remote_code`: of the models of run= and student=; what a run's record says of it is not followed.
    """

    run: str | None
    student: str | None
    teacher_path: str | None
    trust_remote_code: bool
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


CONFIGS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "judge": JudgeConfig,
    "bench": BenchConfig,
    "study": StudyConfig,
}
