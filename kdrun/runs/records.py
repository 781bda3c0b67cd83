"""Records of runs as they lie on the disk, perhaps damaged or someone else's: looked over where they are read.

What is not of its form raises a UserError that names the file, and the line or field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.errors import UserError

STATES = ("running", "done", "failed", "interrupted")
# What the fields of a record are; a list of what, and None where a value is allowed to be null.
RUN = {"command": str, "status": str, "overrides": [str], "attempts": [dict]}
SWEEP = {"command": str, "flags": [str], "words": [str], "directory": str, "fixed": [str], "total": int,
         "attempts": [dict]}  # fmt: skip


def read_json(path: Path, *, key: str) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{key}: no {path.name} in {path.parent}, so it is not a run directory of kdrun") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{key}: {path} does not hold a JSON object")
    return content


def check_fields(content: Mapping[str, Any], fields: Mapping[str, Any], *, at: str, whole: bool = False) -> None:
    """The fields of a record are of their kinds.

    Args:
        whole: all of them must be there.
    """
    for name, kind in fields.items():
        if name not in content and not whole:
            continue
        value, inner = content.get(name), kind[0] if isinstance(kind, list) else None
        fits = type(value) is (list if inner else kind) and (not inner or all(type(item) is inner for item in value))
        if not fits:
            said = f"{name}={json.dumps(value)[:80]}" if name in content else f"no {name}"
            wanted = f"a list of {inner.__name__}" if inner else kind.__name__
            raise UserError(f"{at}: it has {said} ({name} must be a {wanted}), so kdrun did not write it")


def check_run(record: Mapping[str, Any], *, at: str) -> None:
    """A run.json is of the form that `RunDirectory` gives it, as far as it goes."""
    check_fields(record, RUN, at=at)
    if record.get("status", "done") not in STATES:
        raise UserError(f"{at}: it has status={record['status']}, which is none of {', '.join(STATES)}")


def json_lines(path: Path) -> list[str]:
    """The lines of a JSON-lines file, none when it is not there; a newline alone ends one.

    str.splitlines also breaks at U+0085 and U+2028, which stand unescaped in generated text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def json_objects(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, one a line; none when it is not there.

    Args:
        torn: the last line may be cut short, as that of a run that writes or was killed, and is left out then.
    """
    lines, found = json_lines(path), []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            if torn and number == len(lines):
                break
            raise UserError(f"{path}:{number}: not JSON ({error}); make the file again, or remove it") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}:{number}: is not a JSON object; make the file again, or remove it")
        found.append(content)
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl: a step and numbers, null for what was not finite."""
    lines = json_objects(path, torn=True)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("step"), int):
            raise UserError(f"{path}:{number}: has no step, so it is no line of metrics")
        for name, value in line.items():
            if value is not None and not isinstance(value, int | float):
                raise UserError(f"{path}:{number}: {name} is {json.dumps(value)[:80]}, must be a number")
    return lines
