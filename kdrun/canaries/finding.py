"""What one check found: a line of the doctor's list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "skipped", "warning", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """What was measured and, when that is not as it must be, what to do; `figure` is the number to keep, if any."""

    name: str
    verdict: Verdict
    measured: str
    remedy: str = ""
    figure: float | None = None


def fine(name: str, good: bool, said: str, *, remedy: str) -> Finding:
    """ok where it is good, else a warning with what to do."""
    return Finding(name, "ok", said) if good else Finding(name, "warning", said, remedy)


def within(name: str, figure: float, allowed: float, *, measured: str, remedy: str) -> Finding:
    """ok where the figure is at most what is allowed, else FAIL (for nan, too)."""
    said = f"{measured}: {figure:.2g} (allowed {allowed:.0e})"
    return Finding(name, "ok" if figure <= allowed else "FAIL", said, remedy, figure)


def none_of(name: str, faults: list[str], total: int, *, of: str, remedy: str) -> Finding:
    """ok where there is no fault among `total` of something, else FAIL with the first."""
    if not faults:
        return Finding(name, "ok", f"{total} {of}", figure=0.0)
    return Finding(name, "FAIL", f"{len(faults)} of {total} are not {of}: {faults[0]}", remedy, float(len(faults)))
