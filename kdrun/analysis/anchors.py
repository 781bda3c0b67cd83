"""The rows that a comparison of students stands on: their teacher, and a student trained on the data alone (SFT)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kdrun.analysis.comparison import Row, evaluated, read_row, teacher_evaluations
from kdrun.analysis.examples import fingerprint, read_if_there
from kdrun.runs.directory import RECORD, RunDirectory


def with_teacher_and_sft(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows, with the teacher and an SFT run added where they are known and not among them; and, a line each, where
    these come from or what to type to have them.

    The teacher: what pair.teacher names (a run directory wherever it lies, else what the students' folders tell). SFT:
    pair.student where that is such a run, or a run of equal pair and data beside the runs given.
    """
    students = [row for row in rows if row.role == "student" and "pair.teacher" in row.settings]
    if not students:
        return list(rows), []
    teachers, said_of_teachers = _teachers(rows, students)
    sft, said_of_sft = _fine_tuned(rows, students)
    return [*rows, *teachers, *sft], [*said_of_teachers, *said_of_sft]


# -- teachers ----------------------------------------------------------------------------------------------------------


def _teachers(rows: Sequence[Row], students: Sequence[Row]) -> tuple[list[Row], list[str]]:
    added, said = [], []
    references = list(dict.fromkeys(row.settings["pair.teacher"] for row in students))
    for reference in references:
        mine = [row for row in students if row.settings["pair.teacher"] == reference]
        folder = _referred(mine[0], reference)
        row = next((row for row in rows if folder is not None and row.folder.resolve() == folder.resolve()), None)
        if row is None:
            if folder is not None:
                row = read_row(RunDirectory.open(folder, key="pair.teacher"))
            else:
                known = {"role": "teacher", "pair.random_init": mine[0].random_init}
                row = Row(Path(str(reference)), "teacher", "done", known, {})
            label = "teacher" if len(references) == 1 else f"teacher {reference}"
            row = replace(row, label=label, settings=row.settings | {"role": "teacher"})
            row = _with_what_students_know(row, mine)
            added.append(row)
        if not _comparable(row, mine):
            words = _to_evaluate(mine[0], row, from_hub=folder is None)
            said.append(f"{row.label}: no evaluation on the students' examples; type: {words}")
    return added, said


def _with_what_students_know(teacher: Row, students: Sequence[Row]) -> Row:
    """The teacher with evaluations that lie in its students' folders; of others its NLL, which theirs hold."""
    metrics, found = dict(teacher.metrics), dict(teacher.evaluations)
    for row in students:
        for name, folder in teacher_evaluations(row.folder).items():
            if name not in found:
                found[name] = folder
                metrics |= evaluated(name, folder)
    for row in students:
        for key, value in row.metrics.items():
            if key.endswith("/teacher_nll") and not key.startswith("valid/"):
                metrics.setdefault(key.replace("/teacher_nll", "/nll"), value)
    return replace(teacher, metrics=metrics, evaluations=found)


def _comparable(teacher: Row, students: Sequence[Row]) -> bool:
    """Whether any evaluation of the teacher looked at the rows that a student's of that name looked at."""
    prints = {(name, fingerprint(folder)) for row in students for name, folder in row.evaluations.items()}
    return not prints or any((name, fingerprint(folder)) in prints for name, folder in teacher.evaluations.items())


def _to_evaluate(student: Row, teacher: Row, *, from_hub: bool) -> str:
    subject = [f"run={student.folder}", "role=teacher"] if from_hub else [f"run={teacher.folder}"]
    words = [word for word in _typed(student) if word.startswith(("eval=", "eval."))]
    data = [key for key in student.settings if key.startswith("data.")]
    if not from_hub and any(student.settings[key] != teacher.settings.get(key) for key in data):  # else its run's own
        typed = [word for word in _typed(student) if word.startswith("data.") and not word.startswith("data.name=")]
        words += [f"data={student.settings['data.name']}", *typed]
    return shlex.join(["kdrun", "evaluate", *subject, *words])


# -- SFT ---------------------------------------------------------------------------------------------------------------


def _fine_tuned(rows: Sequence[Row], students: Sequence[Row]) -> tuple[list[Row], list[str]]:
    if any(row.fine_tuned for row in rows):
        return [], []
    for folder in _candidates(students):
        config = folder / "config.yaml"
        if not config.exists() or "name: sft" not in config.read_text(encoding="utf-8"):
            continue  # parsing YAML is slow, and there may be hundreds
        row = read_row(RunDirectory.open(folder, key=str(folder)))
        if row.fine_tuned and row.status == "done" and _alike(row, students[0]):
            return [replace(row, label="sft")], [f"sft: taken from {folder}"]
    other = ("loss=", "loss.", "name=", "resume=", "seed=", "teacher=", "teacher.", "rollout=", "rollout.")
    words = [word for word in _typed(students[0]) if not word.startswith(other)]
    return [], [f"no SFT run to compare with; type: {shlex.join(['kdrun', 'train', 'loss=sft', *words])}"]


def _candidates(students: Sequence[Row]) -> Iterable[Path]:
    """Folders that may hold an SFT run: what the students started from, then the neighbours, the newest first."""
    for row in students:
        start = row.settings.get("pair.student")
        folder = _referred(row, start) if start else None
        if folder is not None:
            yield folder
    above = dict.fromkeys(parent for row in students for parent in list(row.folder.resolve().parents)[:2])
    for parent in above:
        found = [path.parent for path in parent.glob(f"*/{RECORD}")]
        yield from sorted(found, key=lambda path: (path / RECORD).stat().st_mtime, reverse=True)


def _alike(one: Row, other: Row) -> bool:
    """Whether two runs have equal data and models, and equal steps at that."""
    keys = [key for key in one.settings if key.startswith(("pair.", "data.", "train.max_steps", "train.epochs"))]
    return all(one.settings[k] == other.settings.get(k) for k in keys if k not in ("pair.student", "pair.teacher"))


# -- what a run says of itself -----------------------------------------------------------------------------------------


def _typed(row: Row) -> list[str]:
    words = map(str, read_if_there(row.folder / RECORD).get("overrides", []))
    return [word for word in words if not word.startswith("hydra.")]


def _referred(row: Row, reference: str) -> Path | None:
    """The run directory that a config's path means: from where its command was typed, or from here."""
    origin = read_if_there(row.folder / RECORD).get("directory")
    places = [Path(origin) / reference] if origin else []
    found = next((place for place in [*places, Path(reference)] if place.is_dir()), None)
    return found if found is not None and (found / RECORD).exists() else None
