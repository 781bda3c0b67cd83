"""The interval of a mean over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval; of one value the interval is the whole line."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        digits = max(0, 2 - math.floor(math.log10(abs(self.value)))) if self.value else 3
        return f"{self.value:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean of one number a seed, with Student's 95 % interval (seeds alike, roughly normal)."""
    mean = fmean(values)
    if len(values) < 2:
        return Mean(mean, -math.inf, math.inf)
    margin = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Mean(mean, mean - margin, mean + margin)


@cache
def t_quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t, by bisection of its integral (Simpson's rule in the angle, to 1e-9)."""
    scale = math.sqrt(degrees)
    # With t = sqrt(d) tan(a) the density becomes cos(a)^(d - 1), on a finite range.
    whole = 2 * _integral(math.pi / 2, degrees)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _integral(middle, degrees) / whole < 0.475 else (low, middle)
    return scale * math.tan((low + high) / 2)


def _integral(angle: float, degrees: int, pieces: int = 2000) -> float:
    width = angle / pieces
    values = [math.cos(i * width) ** (degrees - 1) for i in range(pieces + 1)]
    return width / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
