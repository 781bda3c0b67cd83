"""What a report says in words: the question, the answer, what to read with care, and where it all came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.analysis.comparison import Row
from kdrun.analysis.examples import PROTOCOL, read_if_there
from kdrun.analysis.seeds import Group, differing
from kdrun.analysis.tables import Judged, Table
from kdrun.analysis.verdicts import NOTHING_SHOWN
from kdrun.runs.directory import RECORD

MANY = 8  # values are named up to here, then counted
FEW = 40  # verdicts: up to here their intervals are told in words too
Records = Mapping[Path, Mapping[str, Any]]


@dataclass(frozen=True)
class Config:
    """The settings of one run as lines, each with whether the runs differ in it."""

    run: str
    lines: list[tuple[str, bool]]


def read_records(rows: Iterable[Row]) -> dict[Path, dict[str, Any]]:
    """Folder -> run.json; empty for a teacher that is no run directory."""
    return {row.folder: read_if_there(row.folder / RECORD) for row in rows}


def title_of(groups: Sequence[Group]) -> str:
    """What the students differ in, as a heading."""
    keys = differing(_students(groups))
    if not keys:
        return f"Runs of {groups[0].label}"
    *first, last = keys if len(keys) <= 3 else [*keys[:2], f"{len(keys) - 2} more settings"]
    return "Runs that differ in " + (f"{', '.join(first)} and {last}" if first else last)


def question(groups: Sequence[Group], records: Records, headings: Mapping[str, str]) -> dict[str, str]:
    """Topic -> sentence: what differs, how many runs, which models and data, how trained and evaluated."""
    students = _students(groups)
    rows = _rows(students)
    told = [records[row.folder] for row in rows]
    differ = []
    for key in differing(students):
        values = _distinct(group.settings[key] for group in students if key in group.settings)
        lacking = [group.label for group in students if key not in group.settings]
        without = f" (no setting of {_listed(lacking)})" if lacking else ""
        differ.append(f"{key}: {_listed(values)}{without}")
    seeds = _distinct(row.settings.get("seed") for row in rows)
    statuses = _distinct(row.status for row in rows)
    ended = ", ".join(f"{sum(row.status == status for row in rows)} {status}" for status in statuses)
    answers = {
        "What differs": "; ".join(differ) or "nothing but the seed",
        "Runs": f"{len(rows)} of students ({ended}) in {_count(len(students), 'setting')}; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)}",
        "Student": _models(told, "student_start"),
        "Teacher": _models(told, "teacher"),
        "Training data": _listed(_distinct(_data(row, record) for row, record in zip(rows, told, strict=True)), "; "),
        "Training": _listed(_distinct(_training(row) for row in rows), "; "),
    }
    names = _distinct(metric.rsplit("/", 1)[0] for metric in headings if metric.endswith("/nll"))
    for name in names:
        said = _distinct(_evaluation(row, name) for row in rows if name in row.evaluations)
        if said:
            answers[f"Evaluation {name}"] = _listed(said, "; ")
    return {topic: sentence for topic, sentence in answers.items() if sentence}


def answer(judged: Judged, headings: Mapping[str, str]) -> list[tuple[str, dict[str, list[str]]]]:
    """Group -> {better, worse, no difference shown, ...: the measures}, with its interval where there are few."""
    with_intervals = len(judged) * len(headings) <= FEW
    said = []
    for group, found in judged:
        measures: dict[str, list[str]] = {each: [] for each in ("better", "worse", "higher", "lower", NOTHING_SHOWN)}
        for verdict in found:
            if heading := headings.get(verdict.measure):
                told = with_intervals and verdict.said != NOTHING_SHOWN
                measures[verdict.said].append(f"{heading} {verdict.interval}" if told else heading)
        said.append((group.label, {each: those for each, those in measures.items() if those}))
    return said


def cautions(groups: Sequence[Group], records: Records) -> list[str]:
    """What a reader must know before believing a number: runs not done, code not committed, conditions not equal."""
    rows, students = _rows(groups), _rows(_students(groups))
    told = {row.label: records[row.folder] for row in rows if records[row.folder]}
    learned = {row.label: records[row.folder] for row in students}
    said = [
        f"{row.label}: {row.status}" + (f" ({str(error)[:200]})" if (error := records[row.folder].get("error")) else "")
        for row in rows
        if row.status != "done"
    ]
    if dirty := [label for label, record in told.items() if (record.get("git") or {}).get("dirty")]:
        said.append(f"{len(dirty)} of {_count(len(told), 'run')} with changes not committed to git: {_listed(dirty)}")
    of = {
        "commits of the code": [(record.get("git") or {}).get("commit") for record in told.values()],
        "sets of package versions": [record.get("versions") for record in told.values()],
        "machines (times and memory do not compare)": [record.get("hardware") for record in told.values()],
        "training sets": [(record.get("data") or {}).get("sha256") for record in learned.values()],
        "teachers": [(record.get("teacher") or {}).get("sha256") for record in learned.values()],
    }
    for what, facts in of.items():
        found = _distinct(fact for fact in facts if fact is not None)
        if len(found) > 1:
            said.append(f"{len(found)} different {what} among the runs: see Provenance")
    starts: dict[Any, set[str]] = {}
    for row in students:
        if start := (records[row.folder].get("student_start") or {}).get("sha256"):
            starts.setdefault(row.settings.get("seed"), set()).add(start)
    if unequal := [seed for seed, found in starts.items() if len(found) > 1]:
        said.append(f"students of seed {_listed(unequal)} did not start from equal weights")
    if resumed := [label for label, record in told.items() if record.get("attempts")]:
        said.append(f"taken up again after an earlier attempt: {_listed(resumed)}")
    if single := [g.label for g in _students(groups) if g.status == "done" and len(g.rows) < 2]:
        said.append(f"one seed, so no noise of training is known: {_listed(single)}")
    return said


def configs(rows: Sequence[Row]) -> tuple[list[str], list[Config]]:
    """The settings in which the students differ, and every run's settings, one a line."""
    students = [row for row in rows if row.role == "student"] or rows
    keys = dict.fromkeys(key for row in students for key in row.settings)
    differ = [k for k in keys if len({repr(row.settings.get(k, ...)) for row in students}) > 1]
    found = [Config(row.label, [(f"{k}: {_value(v)}", k in differ) for k, v in row.settings.items()]) for row in rows]
    return differ, found


def provenance(rows: Sequence[Row], records: Records) -> tuple[dict[str, list[str]], Table]:
    """What the runs were made with (fact -> its values), and when, how long and by which words each was made."""
    told = [record for row in rows if (record := records[row.folder])]
    facts = {
        "commands": _distinct(f"cd {r.get('directory')} && {_typed(r)}" for r in told),
        "code": _distinct(_code(r) for r in told),
        "versions": _distinct(", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items()) for r in told),
        "machine": _distinct(_machine(r.get("hardware", {})) for r in told),
    }
    header = ["run", "status", "started", "took s", "code", "folder", "command"]
    lines: list[list[Any]] = []
    for row in rows:
        record = records[row.folder]
        command = shlex.join(["kdrun", str(record["command"]), *map(str, record["overrides"])]) if record else ""
        started, took_s = str(record.get("started") or ""), record.get("duration_s")
        lines.append([row.label, row.status, started, took_s, _code(record), str(row.folder), command])
    return {name: [str(value) for value in values] for name, values in facts.items()}, Table(header, lines)


def _typed(record: Mapping[str, Any]) -> str:
    words = [str(word) for word in record.get("argv", [])[1:]]
    command = "sweep" if "--multirun" in words else str(record.get("command"))  # argv is Hydra's: without the command
    words = [word for word in words if word not in ("--multirun", "sweep", command)]
    return shlex.join(["kdrun", command, *words])


def _code(record: Mapping[str, Any]) -> str:
    git = record.get("git")
    if not git:
        return f"kdrun {record.get('versions', {}).get('kdrun', '')}, not from a checkout" if record else ""
    return f"{git['commit'][:10]}{' + uncommitted changes' if git['dirty'] else ''}"


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    return f"{hardware.get('machine')}, {hardware.get('cores')} cores, {hardware.get('memory_gib')} GiB, {gpus}"


def _models(records: Sequence[Mapping[str, Any]], which: str) -> str:
    said = []
    for record in records:
        facts = record.get(which) or {}
        parts = [
            str(facts["reference"]) if "reference" in facts else "",
            str(facts.get("architecture", "")),
            f"{facts['parameters']:,} parameters" if "parameters" in facts else "",
            "cached" if facts.get("source") == "cached" else "",
        ]
        said.append(_joined(parts))
    return _listed(_distinct(each for each in said if each), "; ")


def _data(row: Row, record: Mapping[str, Any]) -> str:
    facts = record.get("data") or {}
    name = " ".join(str(row.settings[key]) for key in ("data.name", "data.path") if row.settings.get(key))
    keys = [key for key in ("rows", "scored_tokens", "valid_rows") if key in facts]
    return _joined([name, *(f"{facts[key]:,} {key.replace('_', ' ')}" for key in keys)])


def _training(row: Row) -> str:
    steps, batch = row.metrics.get("steps"), row.settings.get("train.batch_size")
    parts = [f"{_count(int(steps), 'step')} of {batch} rows" if steps and batch else ""]
    if "train.lr" in row.settings:
        parts.append(f"{row.settings.get('train.schedule', '')} learning rate {row.settings['train.lr']}".strip())
    return _joined([*parts, str(row.settings.get("train.precision", ""))])


def _evaluation(row: Row, name: str) -> str:
    settings = read_if_there(row.evaluations[name] / PROTOCOL).get("settings", {})
    count, samples = row.metrics.get(f"{name}/num_examples"), len(settings.get("seeds") or ())
    return _joined([
        f"{count:.0f} examples" if count else "",
        f"{settings['split']} split" if "split" in settings else "",
        "greedy" if settings.get("greedy") else "",
        f"{_count(samples, 'sample')} an example at temperature {settings.get('temperature')}" if samples else "",
        f"at most {settings['max_new_tokens']} new tokens" if "max_new_tokens" in settings else "",
    ])  # fmt: skip


def _students(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.role == "student"]


def _rows(groups: Sequence[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({repr(value): value for value in values}.values())


def _listed(values: Sequence[Any], between: str = ", ") -> str:
    shown = [_value(value) for value in values[:MANY]]
    return between.join(shown) + (f" and {len(values) - MANY} more" if len(values) > MANY else "")


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)
