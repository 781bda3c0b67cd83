"""The config of `kdrun judge`: what is judged, and which endpoint judges it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kdrun.config.endpoint import checked_address, checked_variable
from kdrun.config.section import Count, CountOrZero, Name, NonNegative, Positive, Section


class Judge(Section):
    """The endpoint. key_env: the name of the environment variable with the key, null: none is sent; num_examples: a
    random choice, the same for all runs; timeout_s: of one request; prices: per million tokens, null: unknown."""

    model: Annotated[str, Field(min_length=1)]
    base_url: str
    key_env: str | None
    num_examples: Count | None
    concurrency: Annotated[int, Field(ge=1, le=256)]
    timeout_s: Positive
    retries: CountOrZero
    max_tokens: Count
    input_price: NonNegative | None
    output_price: NonNegative | None
    cache: str

    @field_validator("key_env", mode="before")
    @classmethod
    def key_env_is_a_name(cls, value: Any) -> Any:
        return checked_variable(value, key="judge.key_env")

    @field_validator("base_url")
    @classmethod
    def base_url_is_plain(cls, value: str) -> str:
        return checked_address(value, key="judge.base_url", path="/chat/completions")


class JudgeConfig(Section):
    """`kdrun judge`. evaluation (also typed eval=NAME): which evaluation of a run, null: the newest; decoding: greedy
    or seedN; against: an evaluated directory or `references`; scores: null is quality, or none beside against=; name:
    of the scores, `judge` stands for the model's."""

    runs: Annotated[tuple[str, ...], Field(min_length=1)]
    against: str | None
    evaluation: str | None
    decoding: str
    scores: tuple[Literal["quality", "diversity"], ...] | None
    seed: CountOrZero
    name: Name
    yes: bool
    judge: Judge

    @field_validator("runs", "scores", mode="before")
    @classmethod
    def one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("decoding")
    @classmethod
    def decoding_is_one_text(cls, value: str) -> str:
        if not re.fullmatch(r"greedy|seed\d+", value):
            raise ValueError(f"decoding={value}: must be greedy or one sample, for example decoding=seed10")
        return value

    @field_validator("scores")
    @classmethod
    def scores_are_distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"scores={list(value)}: the same score twice; name each once")
        return value
