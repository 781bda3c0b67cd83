"""A sweep's folder: sweep.json (the words that started it, its cells) and one run directory a cell, named by number.

Everything that is shown of a sweep is read from these files, whichever process or machine runs its cells.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from kdrun.errors import UserError
from kdrun.runs.directory import RECORD, RunDirectory, flatten, iso_now, write_json
from kdrun.runs.locks import try_lock
from kdrun.runs.progress import FILE as PROGRESS
from kdrun.runs.records import SWEEP as SWEEP_FIELDS
from kdrun.runs.records import check_fields, read_json
from kdrun.untrusted import printable

SWEEP = "sweep.json"
# What a sweep or a search minimises: the first of these that a run's summary has.
OBJECTIVES = ("valid/fkl", "valid/topk_fkl", "valid/nll")


@dataclass(frozen=True)
class Cell:
    """One cell as its files say: words are the swept ones, durations in seconds, `left_s` of the work in progress."""

    number: int
    folder: Path
    words: list[str]
    status: str = "waiting"  # waiting, running, done, failed, interrupted
    work: str = ""
    done: int = 0
    total: int = 0
    left_s: float | None = None
    spent_s: float = 0.0
    objective: tuple[str, float] | None = None
    error: str | None = None


def start_sweep(
    folder: Path,
    *,
    command: str,
    flags: Sequence[str],
    words: Sequence[str],
    cells: list[list[str]] | None,
    fixed: Sequence[str],
    total: int,
    launcher: str,
) -> None:
    """Write sweep.json, or note in it that the sweep goes on.

    Args:
        words: overrides that start the same sweep again, all but its folder.
        cells: the swept words of each cell, by number; None where a search chooses them.
        fixed: keys that are the same in all cells.
        total: how many cells there will be.
        launcher: by which the cells run this time.
    """
    path = folder / SWEEP
    earlier = read_json(path, key=str(path)) if path.exists() else {}
    content = earlier or {
        "command": command, "flags": list(flags), "words": list(words), "directory": os.getcwd(), "cells": cells,
        "fixed": list(fixed), "total": total, "attempts": [],
    }  # fmt: skip
    content["attempts"] = [*content["attempts"], {"started": iso_now(), "process": os.getpid(), "launcher": launcher}]
    write_json(path, content)


def read_sweep(folder: str | Path, *, key: str) -> dict[str, Any]:
    """The content of sweep.json.

    Raises:
        UserError: naming `key`, when the folder is missing or holds no sweep.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    if not (path / SWEEP).exists():
        one = f"; for one run type kdrun train resume={folder}" if (path / RECORD).exists() else ""
        raise UserError(f"{key}={folder}: no {SWEEP} there, so it is not the folder of a sweep{one}")
    content = read_json(path / SWEEP, key=f"{key}={folder}")
    check_fields(content, SWEEP_FIELDS, at=f"{key}={folder}: {path / SWEEP}", whole=True)
    return content


def read_cells(folder: Path, *, since: str | None = None, known: dict[int, Cell] | None = None) -> list[Cell]:
    """Every cell of a sweep, by number.

    Args:
        since: a cell that failed or was interrupted before this time (ISO 8601) is waiting again.
        known: cells found done before; they are not read again, and new ones are put there.
    """
    sweep, known = read_sweep(folder, key="sweep"), {} if known is None else known
    words = sweep["cells"] or [[] for _ in range(sweep["total"])]
    fixed = None if sweep["cells"] else set(sweep["fixed"])
    cells = []
    for number, swept in enumerate(words):
        cell = known.get(number) or _read_cell(folder / str(number), swept, fixed, since)
        if cell.status == "done":
            known[number] = cell
        cells.append(cell)
    return cells


def _read_cell(folder: Path, words: list[str], fixed: set[str] | None, since: str | None) -> Cell:
    number = int(folder.name)
    record = _content(folder / RECORD)
    if not record:
        return Cell(number, folder, words)
    if fixed is not None:  # a search chose them
        words = [word for word in record["overrides"] if word.split("=")[0] not in fixed]
    words = list(map(printable, words))
    status = record["status"]
    if since is not None and status in ("failed", "interrupted") and record["ended"] < since:
        return Cell(number, folder, words)
    started = datetime.fromisoformat(record["started"]).timestamp()
    if status == "running":
        now = _content(folder / PROGRESS)
        if now.get("time", 0) < started:  # an earlier attempt's
            now = {}
        return Cell(
            number, folder, words, status, now.get("name", "starting"), now.get("done", 0), now.get("total", 0),
            now.get("left_s"), time.time() - started,
        )  # fmt: skip
    return Cell(
        number, folder, words, status, spent_s=record["duration_s"] or 0.0,
        objective=objective(_content(folder / "summary.json")) if status == "done" else None,
        error=record["error"] and printable(record["error"]),
    )  # fmt: skip


def _content(path: Path) -> dict[str, Any]:
    """A JSON object; empty while there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def objective(summary: dict[str, Any]) -> tuple[str, float] | None:
    """Name and value of what is minimised; None when the summary has none of them."""
    return next(((name, float(summary[name])) for name in OBJECTIVES if summary.get(name) is not None), None)


def best(cells: Sequence[Cell]) -> Cell | None:
    """The cell with the least objective, among those of the objective that most cells have."""
    found = [(cell.objective, cell) for cell in cells if cell.objective is not None]
    if not found:
        return None
    names = [pair[0] for pair, _ in found]
    name = max(OBJECTIVES, key=names.count)
    return min((pair[1], cell.number, cell) for pair, cell in found if pair[0] == name)[2]


def time_left(cells: Sequence[Cell]) -> float | None:
    """Seconds until the last cell is done, as many running as now; None before anything is known of a cell's time.

    A cell takes as long as those that are done did on average; before there are any, as its own work says.
    """
    running = [cell for cell in cells if cell.status == "running"]
    waiting = sum(cell.status == "waiting" for cell in cells)
    taken = [cell.spent_s for cell in cells if cell.status == "done"]
    taken = taken or [cell.spent_s + cell.left_s for cell in running if cell.left_s is not None]
    if not taken or not (running or waiting):
        return None
    typical = mean(taken)
    rests = [max(cell.left_s or 0.0, typical - cell.spent_s) for cell in running]
    shared = (sum(rests) + waiting * typical) / max(len(running), 1)
    return max([shared, *rests])


@contextmanager
def held(cell: Path) -> Iterator[bool]:
    """Whether this process has got the lock of a cell, for as long as the body runs; never waits."""
    lock = try_lock(cell.parent / f".{cell.name}.lock")
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def settle(folder: Path) -> None:
    """Cells that say running though no process holds them were killed: write that they are interrupted."""
    for cell in read_cells(folder):
        if cell.status == "running":
            with held(cell.folder) as free:
                run = RunDirectory.open(cell.folder, key="sweep")
                if free and run.record["status"] == "running":
                    run.note(status="interrupted", error="its process ended without a word", ended=iso_now())


def differences(before: dict[str, Any], now: dict[str, Any], *, ignored: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Flat key -> (value before, value now), where two configs differ."""
    old, new = flatten(before), flatten(now)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in ignored
    }
