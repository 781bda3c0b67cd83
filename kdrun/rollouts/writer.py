"""The student writing during its own training: current weights, dropout off, texts that do not depend on the ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrun.data.encoding import EncodedSet
from kdrun.generation.answers import answer_limits, answered
from kdrun.generation.generate import generate
from kdrun.generation.reading import Mixture
from kdrun.generation.sampling import Sampling


@dataclass
class Written:
    """What was written since the last report: texts, their tokens with EOS, those that EOS ended, seconds."""

    texts: int = 0
    tokens: int = 0
    finished: int = 0
    seconds: float = 0.0


class StudentWriter:
    """Answers to prompts, drawn from the student, or from its mixture with a teacher."""

    def __init__(
        self,
        student: Any,
        sampling: Sampling,
        *,
        eos_id: int,
        pad_id: int,
        batch_size: int,
        max_tokens: int,
        seed: int,
        mixed_with: Mixture | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """
        Args:
            max_tokens: of prompt and answer together.
            autocast: entered while writing: the precision of the training's forward passes.
        """
        self.student, self.sampling, self.mixed_with, self.autocast = student, sampling, mixed_with, autocast
        self.eos_id, self.pad_id, self.batch_size = eos_id, pad_id, batch_size
        self.max_tokens, self.seed = max_tokens, seed
        self.written = Written()

    @property
    def teacher_share(self) -> float:
        """Of the mixture that tokens are drawn from."""
        return self.mixed_with.share if self.mixed_with is not None else 0.0

    def write(self, encoded: EncodedSet, rows: Sequence[int] | NDArray[np.int64], step: int) -> EncodedSet:
        """The prompts of these rows with new answers; the text of a row is drawn from the stream (seed, step, row)."""
        start = time.monotonic()
        numbers = [int(row) for row in rows]
        with self.autocast():
            generations = generate(
                self.student, [encoded.prompt(row).tolist() for row in numbers], self.sampling, eos_id=self.eos_id,
                pad_id=self.pad_id, batch_size=self.batch_size, seed=[self.seed, step], indices=numbers,
                limits=answer_limits(
                    encoded, numbers, max_new_tokens=self.sampling.max_new_tokens, max_tokens=self.max_tokens),
                mixed_with=self.mixed_with,
            )  # fmt: skip
        texts = answered(encoded, numbers, generations, eos_id=self.eos_id)
        self.written.texts += len(texts)
        self.written.tokens += texts.num_scored_tokens
        self.written.finished += sum(generation.finished for generation in generations)
        self.written.seconds += time.monotonic() - start
        return texts

    def observe(self, seconds: float) -> dict[str, float]:
        """Of the texts since the last call, which was `seconds` ago: mean length in tokens, share that EOS ended, and
        what writing them cost; nothing when none was written."""
        written, self.written = self.written, Written()
        if not written.texts:
            return {}
        return {
            "generated_length": written.tokens / written.texts,
            "generated_finished_share": written.finished / written.texts,
            "generated_tokens_per_s": written.tokens / max(written.seconds, 1e-9),
            "generating_share": written.seconds / max(seconds, 1e-9),
        }

    def state_dict(self) -> dict[str, Any]:
        """What was written since the last report."""
        return asdict(self.written)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.written = Written(**state)
