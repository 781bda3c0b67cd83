"""The teacher group: whether the teacher runs beside the student or was run before."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdrun.config.section import Count, Section


class LiveTeacher(Section):
    """The teacher's model runs on every batch."""

    kind: Literal["live"]


class CachedTeacher(Section):
    """One pass of the teacher is stored, and every run reads it.

    `directory` holds the caches, each under a name of its own, made when they are missing. `path` names one of them
    (someone else's, say): it is read and never made. `topk: null` stores the final hidden states, from which every loss
    has the whole distribution; a number stores that many log-probabilities a token and the rest as one.
    """

    kind: Literal["cached"]
    directory: str
    path: str | None
    topk: Count | None


TeacherSource = Annotated[LiveTeacher | CachedTeacher, Field(discriminator="kind")]
