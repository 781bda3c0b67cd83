"""Which text an optimiser step learns from. `rollout=` says which tokens, `loss=` says how they are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrun.data.encoding import EncodedSet
from kdrun.rollouts.writer import StudentWriter

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Rows of one writer (data, teacher, student or corpus) in an optimiser step, those of this rank.

    `weight`: of the mean over this part's tokens, on all ranks, in the step's total. Every rank has the same parts, if
    need be without rows.
    """

    writer: str
    encoded: EncodedSet
    rows: Rows
    weight: float = 1.0


class Rollout:
    """The rows of a set as they stand there: the data's, or what the teacher wrote before the training."""

    teacher_share = 0.0  # of the mixture that the student's text is drawn from

    def __init__(self, encoded: EncodedSet, *, writer: str = "data") -> None:
        self.encoded, self.writer = encoded, writer

    def parts(self, step: int, rows: Rows) -> list[Part]:
        """What optimiser step `step` (from 0) learns, for the rows that it has drawn for this rank."""
        return [Part(self.writer, self.encoded, rows)]

    def validated(self, nats: float) -> None:
        """Takes the student's NLL on the validation rows, in nats per token; the first is that before the training."""

    def observe(self, seconds: float) -> dict[str, float]:
        """Values to log of the `seconds` since the last call."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on exactly, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class OnPolicy(Rollout):
    """What the rollouts share whose text the student writes during the training."""

    def __init__(self, encoded: EncodedSet, writer: StudentWriter, *, num_steps: int, seed: int) -> None:
        super().__init__(encoded)
        self.students, self.num_steps, self.seed = writer, num_steps, seed
        self.teacher_share = writer.teacher_share
        self.steps = self.student_steps = 0  # since the last report

    def stream(self, step: int) -> np.random.Generator:
        """The random numbers that decide about a step. No text is drawn with them, as row 0's would be from [seed,
        step]: numpy takes that for [seed, step, 0]."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, step], spawn_key=(0,)))

    def _part(self, step: int, rows: Rows, is_students: bool) -> Part:
        """The rows as they are, or their prompts with what the student writes now."""
        self.steps += 1
        self.student_steps += is_students
        if not is_students:
            return Part(self.writer, self.encoded, rows)
        texts = self.students.write(self.encoded, rows, step)
        return Part("student", texts, np.arange(len(texts)))

    def observe(self, seconds: float) -> dict[str, float]:
        values = {"student_share": self.student_steps / max(self.steps, 1), **self.students.observe(seconds)}
        self.steps = self.student_steps = 0
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "student_steps": self.student_steps, "written": self.students.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.student_steps = state["steps"], state["student_steps"]
        self.students.load_state_dict(state["written"])


class StudentText(OnPolicy):
    """On-policy: a share of the steps learns what the student writes in them, to the prompts of their rows.

    Share 1 is `rollout=student`; below it GKD's mixture (arXiv 2306.13649): a step is the one or the other, decided by
    (seed, step) alone, so on all ranks alike.
    """

    def __init__(
        self, encoded: EncodedSet, writer: StudentWriter, *, share: Callable[[float], float], num_steps: int, seed: int
    ) -> None:
        """
        Args:
            share: of the student at a progress in [0, 1): in [0, 1].
        """
        super().__init__(encoded, writer, num_steps=num_steps, seed=seed)
        self.share = share

    def parts(self, step: int, rows: Rows) -> list[Part]:
        return [self._part(step, rows, self.stream(step).random() < self.share(step / self.num_steps))]


class Contrastive(OnPolicy):
    """The teacher's text and the student's to the same prompts, side by side; each half's mean counts 1/2."""

    def __init__(self, encoded: EncodedSet, writer: StudentWriter, *, num_steps: int, seed: int) -> None:
        super().__init__(encoded, writer, num_steps=num_steps, seed=seed)
        self.writer = "teacher"

    def parts(self, step: int, rows: Rows) -> list[Part]:
        theirs, own = Part(self.writer, self.encoded, rows, 0.5), self._part(step, rows, True)
        return [theirs, Part(own.writer, own.encoded, own.rows, 0.5)]


class WithCorpus:
    """A rollout, and beside it plain text: `weight` times its mean cross-entropy is added to every step's total."""

    def __init__(self, rollout: Rollout, corpus: EncodedSet, *, rows: Callable[[int], Rows], weight: float) -> None:
        """
        Args:
            rows: of the corpus for a step, those of this rank.
        """
        self.rollout, self.corpus, self.rows, self.weight = rollout, corpus, rows, weight

    def parts(self, step: int, rows: Rows) -> list[Part]:
        return [*self.rollout.parts(step, rows), Part("corpus", self.corpus, self.rows(step), self.weight)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rollout, name)


def share_schedule(first: float, last: float, *, schedule: str) -> Callable[[float], float]:
    """The student's share of the steps at a progress in [0, 1]: from `first` to `last`.

    constant: `first`; linear: on a line; geometric: the data's share 1 - s falls by a constant factor, as ImitKD's
    (Lin et al. 2020, section 3.2: beta = r^(i / I)), with `last` below 1.
    """
    if schedule == "linear":
        return lambda progress: first + (last - first) * progress
    if schedule == "geometric":
        return lambda progress: 1 - (1 - first) ** (1 - progress) * (1 - last) ** progress
    return lambda progress: first
