"""The eval group: what is generated, how it is drawn, and which scores are taken."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.section import Count, CountOrZero, Name, Positive, Section


class Evaluation(Section):
    """How a model is evaluated. `greedy` decodes once without sampling; each of `seeds` samples once.

    suites: names of evaluation sets (dolly, self_instruct, vicuna, sni, unni) or JSON-lines files, each scored apart;
    null: the `split` of the run's own data. suites_path: a folder with local copies of the named ones; null: the hub.
    diversity_words: the words of each text that distinct-n looks at. harness: lm-evaluation-harness tasks.
    """

    name: Name
    split: Literal["valid", "test"]
    suites: Annotated[tuple[str, ...], Field(min_length=1)] | None
    suites_path: str | None
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
    bartscore_model: str | None
    diversity_words: Count
    harness: tuple[str, ...]
    harness_path: str | None
    harness_limit: Count | None

    @model_validator(mode="after")
    def names_are_distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"eval.seeds={list(self.seeds)}: the same seed twice counts one sample twice")
        if self.suites is not None and len(set(self.suites)) != len(self.suites):
            raise ValueError(f"eval.suites={list(self.suites)}: a suite stands twice; name each once")
        return self
