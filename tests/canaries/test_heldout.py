"""A teacher that has nothing to teach."""

from dataclasses import replace

from kdrun.canaries.heldout import teacher_is_better
from kdrun.canaries.patient import Patient
from kdrun.teachers.live import LiveTeacher


def test_a_teacher_no_better_than_its_student_fails_a_random_student_and_warns_a_trained_one(patient: Patient) -> None:
    """Of a pair and the same pair with exchanged roles one has the better teacher."""
    exchanged = replace(
        patient,
        student=patient.teacher.model,
        teacher=LiveTeacher(patient.student, rows=None),  # type: ignore[union-attr]
    )
    pairs = [(p, teacher_is_better(p, p.encoded, untrained=True)) for p in (patient, exchanged)]
    assert sorted(finding.verdict for _, finding in pairs) == ["FAIL", "ok"]
    assert abs(sum(finding.figure or 0 for _, finding in pairs)) < 1e-6
    worse = next(p for p, finding in pairs if finding.verdict == "FAIL")
    assert teacher_is_better(worse, worse.encoded, untrained=False).verdict == "warning"
    same = replace(patient, teacher=LiveTeacher(patient.student, rows=None))
    assert teacher_is_better(same, same.encoded, untrained=True).verdict == "FAIL"
