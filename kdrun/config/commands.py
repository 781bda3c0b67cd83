"""One config a command."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.adapters import Adapter, Lora
from kdrun.config.bench import BenchConfig
from kdrun.config.evaluation import Evaluation
from kdrun.config.judge import JudgeConfig
from kdrun.config.launching import Launch, Sharding
from kdrun.config.losses import Loss
from kdrun.config.parts import Data, Pair, ScratchPair, Track, Train
from kdrun.config.rollouts import AdaptiveText, Drawn, Rollout
from kdrun.config.section import CountOrZero, Name, Section
from kdrun.config.study import StudyConfig
from kdrun.config.teacher import CachedTeacher, TeacherSource

# The rollouts of losses that cannot take every one, and why.
SUITED: dict[str, tuple[tuple[str, ...], str]] = {
    "sft": (
        ("data", "teacher"),
        "cross-entropy on the student's own text teaches it nothing",
    ),
    "cald": (("contrastive",), "its halves are text of the teacher and text of the student, side by side"),
    "minillm": (("student",), "it is a policy gradient on text that the student writes"),
}


class TrainConfig(Section):
    """`kdrun train` and every cell of `kdrun sweep`."""

    role: Literal["student", "teacher"]
    seed: CountOrZero
    name: Name
    resume: str | None
    evaluate: bool
    pair: Pair
    loss: Loss
    rollout: Rollout
    data: Data
    teacher: TeacherSource
    adapter: Adapter
    train: Train
    eval: Evaluation
    track: Track
    launch: Launch

    @property
    def student_writes(self) -> bool:
        """Whether the teacher will be asked about text that is only written in the training."""
        return self.rollout.name not in ("data", "teacher")

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
    def there_is_something_to_quantise(self) -> Self:
        if isinstance(self.pair, ScratchPair) and isinstance(self.adapter, Lora) and self.adapter.quantise:
            raise ValueError(
                f"adapter.quantise={self.adapter.quantise}: pair={self.pair.name} starts from weights that kdrun "
                "makes, in float32; type adapter.quantise=null, or a pair of checkpoints"
            )
        return self

    @model_validator(mode="after")
    def shards_are_of_plain_weights(self) -> Self:
        asked = {
            "adapter=none": isinstance(self.adapter, Lora),
            "train.compile=false": self.train.compile,
            "pair.teacher_bits=null": getattr(self.pair, "teacher_bits", None) is not None,
        }
        if isinstance(self.launch, Sharding) and any(asked.values()):
            instead = " ".join(word for word, is_asked in asked.items() if is_asked)
            raise ValueError(
                f"launch={self.launch.kind}: shards plain weights, as they are; type launch=ddp, or {instead}"
            )
        return self

    @model_validator(mode="after")
    def text_suits_the_loss(self) -> Self:
        rollout, loss = self.rollout.name, self.loss.name
        wanted, why = SUITED.get(loss, ((rollout,), ""))
        if rollout not in wanted:
            raise ValueError(
                f"rollout={rollout}: does not suit loss={loss}: {why}; type "
                f"{' or '.join(f'rollout={name}' for name in wanted)}, or another loss"
            )
        if loss == "minillm" and isinstance(drawn := self.rollout, Drawn):
            given = (drawn.temperature, drawn.top_k, drawn.top_p)
            if given != (1, 0, 1):
                raise ValueError(
                    f"rollout.temperature={given[0]:g}, top_k={given[1]}, top_p={given[2]:g}: loss=minillm weighs a "
                    "token by its chance in the models' own distribution; type rollout.temperature=1 rollout.top_k=0 "
                    "rollout.top_p=1, or another loss"
                )
        if self.role == "teacher" and rollout != "data":
            raise ValueError(f"rollout={rollout}: role=teacher is fine-tuned on the data; type rollout=data")
        if isinstance(self.rollout, Drawn) and (self.rollout.max_new_tokens or 0) >= self.data.max_tokens:
            raise ValueError(
                f"rollout.max_new_tokens={self.rollout.max_new_tokens}: must be below data.max_tokens="
                f"{self.data.max_tokens}, which prompt and answer share; null: whatever the prompt leaves"
            )
        if isinstance(self.rollout, AdaptiveText) and self.train.valid_every is None and not self.rollout.threshold:
            raise ValueError(
                "train.valid_every=null: rollout=adaptive raises its threshold by the validation loss, from 0, so no "
                "text would ever be written; type train.valid_every=50, or rollout.threshold=0.5"
            )
        return self

    @model_validator(mode="after")
    def cache_can_serve(self) -> Self:
        if not isinstance(self.teacher, CachedTeacher):
            return self
        if self.role == "teacher":
            raise ValueError("teacher=cached: role=teacher fine-tunes the teacher itself; type teacher=live")
        if self.student_writes:
            raise ValueError(
                f"teacher=cached: rollout={self.rollout.name} scores text that the student writes in the training, "
                "which no cache can hold; type teacher=live, or rollout=data or teacher"
            )
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
