"""Pictures of the studies as plain data; drawing.py draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curve:
    """Points of one name. `look`: its colour, style and marker, the same for a name in every panel; -1 is plain ink.

    kind: joined by a line, or alone. band: (low, high), a pale area around a line. An empty label stays out of the key.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: int = -1
    kind: Literal["line", "points"] = "line"
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Surface:
    """Values over distributions of three classes, in any order, as colours with a bar; x, y: see `on_simplex`.

    label: what the colours mean, with its unit. limits: the bar's ends. arrows: (x, y, dx, dy), drawn on top to scale.
    """

    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[float]
    label: str
    limits: tuple[float, float]
    arrows: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes, or the triangle of a surface. levels and marks: named horizontal and vertical lines."""

    title: str
    x_label: str = ""
    y_label: str = ""
    curves: Sequence[Curve] = ()
    surface: Surface | None = None
    log_x: bool = False
    log_y: bool = False
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    levels: Sequence[tuple[str, float]] = ()
    marks: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Picture:
    """Panels in rows of `columns`, one key below all of them. `name` is that of its files."""

    name: str
    title: str
    panels: Sequence[Panel]
    columns: int = 2


@dataclass(frozen=True)
class Animation:
    """Frames of one layout, shown one after the other; the last one stays for two seconds."""

    name: str
    frames: Sequence[Picture]


def log_limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis: those of the values with room beyond."""
    return min(values) / 1.5, max(values) * 1.5


def on_simplex(first: float, second: float, third: float) -> tuple[float, float]:
    """The place of a three-class distribution in a triangle of unit sides: corners (0, 0), (1, 0), (1/2, sqrt(3)/2)."""
    total = first + second + third
    return (second + third / 2) / total, 3**0.5 / 2 * third / total
