"""Checks of the losses' parameters: one line that names the key, the value, what is allowed and what to type."""

import math
from collections.abc import Iterable

from kdrun.errors import UserError


def checked_number(
    key: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    example: float,
) -> float:
    """The value as a float, if it is a finite number between low and high (ends included unless open)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number:
        above = value > low if low_open else value >= low
        below = value < high if high_open else value <= high
        if above and below:
            return float(value)
    left, right = "(" if low_open or math.isinf(low) else "[", ")" if high_open or math.isinf(high) else "]"
    raise UserError(
        f"loss.{key}={value!r}: must be a finite number in {left}{low:g}, {high:g}{right}; "
        f"for example loss.{key}={example:g}"
    )


def checked_choice(key: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of the allowed words."""
    words = list(allowed)
    if value in words:
        return value
    raise UserError(f"loss.{key}={value!r}: must be one of {', '.join(words)}; for example loss.{key}={words[0]}")


def checked_flag(key: str, value: bool) -> bool:
    """The value, if it is true or false."""
    if isinstance(value, bool):
        return value
    raise UserError(f"loss.{key}={value!r}: must be true or false; for example loss.{key}=true")
