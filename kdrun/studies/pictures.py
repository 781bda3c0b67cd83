"""Pictures of the studies as plain data; drawing.py draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curve:
    """Points of one name. `look`: its colour, style and marker, the same for a name in every panel; -1 is plain ink.

    kind: joined by a line, alone as points, or as stairs. band: (low, high) drawn as a pale area around a line.
    faint: one of many behind their mean. An empty label stays out of the key.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: int = -1
    kind: Literal["line", "points", "stairs"] = "line"
    band: tuple[Sequence[float], Sequence[float]] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Surface:
    """Values over points of a plane (a grid or a triangle, in any order), as colours with a bar.

    label: what the colours mean, with its unit. arrows: (x, y, dx, dy), drawn on top; their lengths are kept to scale.
    """

    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[float]
    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    arrows: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes. levels and marks: named horizontal and vertical lines; notes: words at points of the plane.

    simplex: the corners' names of a triangle with unit sides, drawn instead of axes (see `on_simplex`).
    """

    title: str
    x_label: str = ""
    y_label: str = ""
    curves: tuple[Curve, ...] = ()
    surface: Surface | None = None
    log_x: bool = False
    log_y: bool = False
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    levels: tuple[tuple[str, float], ...] = ()
    marks: tuple[tuple[str, float], ...] = ()
    notes: tuple[tuple[str, float, float], ...] = ()
    simplex: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Picture:
    """Panels in rows of `columns`, one key below all of them. `name` is that of its files."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    columns: int = 2


@dataclass(frozen=True)
class Animation:
    """Frames of one layout, shown one after the other; the last one stays for two seconds."""

    name: str
    frames: tuple[Picture, ...]
    frames_per_s: float = 8


def on_simplex(first: float, second: float, third: float) -> tuple[float, float]:
    """The place of a three-class distribution in a triangle of unit sides: corners (0, 0), (1, 0), (1/2, sqrt(3)/2)."""
    total = first + second + third
    return (second + third / 2) / total, 3**0.5 / 2 * third / total
