"""One line of the table that `make torture` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A promise, how often it was tried and kept, and what was measured beside that."""

    promise: str
    tried: int
    kept: int
    figure: str = ""

    @property
    def ok(self) -> bool:
        """Kept every time, and tried at least once."""
        return 0 < self.tried == self.kept

    def __str__(self) -> str:
        return f"| {self.promise} | {self.kept} of {self.tried} | {self.figure} |"
