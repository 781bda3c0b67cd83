"""The cheap canaries, before the first step of a training: a run that would compute something else does not start."""

from __future__ import annotations

from collections.abc import Callable

from kdrun.canaries import objective, texts
from kdrun.canaries.finding import Finding
from kdrun.canaries.patient import Patient
from kdrun.errors import UserError

NUM_ROWS = 2
CHEAP: tuple[Callable[[Patient], Finding], ...] = (
    texts.rows_are_their_texts,
    texts.scored_tokens,
    objective.cross_entropy_is_the_models_own,
    objective.student_as_teacher,
    objective.shift_raises_the_loss,
)


def check_first_rows(patient: Patient) -> dict[str, float | None]:
    """{canary: figure} of the cheap canaries.

    Raises:
        UserError: naming the first that fails.
    """
    canaries = [*CHEAP, *([objective.teacher_is_its_model] if patient.teacher is not None else [])]
    figures = {}
    for canary in canaries:
        finding = canary(patient)
        if finding.verdict == "FAIL":
            raise UserError(
                f"canary '{finding.name}': {finding.measured}; {finding.remedy}. Nothing was trained; `kdrun doctor` "
                "with the same words shows all canaries"
            )
        figures[finding.name] = finding.figure
    return figures
