"""The rollout group: whose text a step learns, and how it is drawn."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdrun.config.endpoint import checked_address, checked_variable
from kdrun.config.section import Count, CountOrZero, NonNegative, Section, Share


class DataText(Section):
    """The responses of the data."""

    name: Literal["data"]


class Drawn(Section):
    """How text is drawn: temperature 0 is greedy, top_k 0 and top_p 1 are off; max_new_tokens: at most, EOS counted
    (null: up to data.max_tokens); batch_size: texts written side by side."""

    temperature: NonNegative
    top_k: CountOrZero
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count | None
    batch_size: Count


class TeacherText(Drawn):
    """What the teacher wrote before the training (SeqKD), `samples` answers to each prompt, kept in `directory`; drawn
    with a `seed` of their own, so that runs of several seeds read the same text.

    `server`: the address of an OpenAI-compatible endpoint that writes them, up to /completions, of the model
    `server_model`; null: the teacher is loaded. `key_env`: the environment variable with its key.
    """

    name: Literal["teacher"]
    samples: Count
    seed: CountOrZero
    directory: str
    server: str | None
    server_model: str | None
    key_env: str | None

    @field_validator("key_env", mode="before")
    @classmethod
    def key_env_is_a_name(cls, value: Any) -> Any:
        return checked_variable(value, key="rollout.key_env")

    @field_validator("server")
    @classmethod
    def server_is_an_address(cls, value: str | None) -> str | None:
        return None if value is None else checked_address(value, key="rollout.server", path="/completions")

    @model_validator(mode="after")
    def server_has_a_model(self) -> Self:
        if (self.server is None) != (self.server_model is None):
            raise ValueError(
                f"rollout.server={self.server or 'null'}: rollout.server and rollout.server_model go together; type "
                "rollout.server=http://127.0.0.1:8000/v1 rollout.server_model=NAME"
            )
        return self


class OwnText(Drawn):
    """What the student writes in every step; teacher_share: of the teacher in the mixture that tokens are drawn from
    (MiniLLM)."""

    name: Literal["student"]
    teacher_share: Share


class MixedText(Drawn):
    """The student's text in a share of the steps (GKD's lambda), the data's in the others; the share goes from `share`
    to `share_end` by `schedule`."""

    name: Literal["mixed"]
    share: Share
    share_end: Share
    schedule: Literal["constant", "linear", "geometric"]

    @model_validator(mode="after")
    def geometric_ends_below_one(self) -> Self:
        if self.schedule == "geometric" and max(self.share, self.share_end) == 1:
            raise ValueError(
                "rollout.schedule=geometric: the data's share can only fall towards 0, so rollout.share and "
                "rollout.share_end must be below 1; type for example rollout.share_end=0.99"
            )
        return self


class AdaptiveText(Drawn):
    """The student's text, new or from a buffer of `buffer_size`, as often as the validation loss asks (DistiLLM)."""

    name: Literal["adaptive"]
    threshold: Share
    threshold_step: Share
    margin: NonNegative
    buffer_size: Count


class ContrastiveText(TeacherText):
    """The teacher's answers and the student's to the same prompts, side by side, each half's mean counted 1/2."""

    name: Literal["contrastive"]  # type: ignore[assignment]


Rollout = Annotated[
    DataText | TeacherText | OwnText | MixedText | AdaptiveText | ContrastiveText, Field(discriminator="name")
]
