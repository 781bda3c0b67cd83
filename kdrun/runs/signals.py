"""SIGINT and SIGTERM: exits that a run's record sees, and that wait while half a step is done."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import AbstractContextManager, suppress
from types import FrameType
from typing import Any

from kdrun.runs.ranks import every_rank, rank

STOPPING = b"stopping when this step is done and kept; once more stops at once\n"


def exit_on_sigterm() -> None:
    """From now on SIGTERM ends this process as sys.exit(143), so that records and locks are closed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class HeldSignals(AbstractContextManager["HeldSignals"]):
    """While it is entered, a first SIGINT or SIGTERM waits for the end of the body and then acts as it would have
    before; a second one acts at once. It can be entered again and again.

    `broken`: the body of one entry did not come to its end, so what it works on may be half done.
    """

    def __init__(self) -> None:
        self.broken = False
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> HeldSignals:
        self._came, self._before = None, {}
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup, or a shell's `&`, ignores SIGINT
                    self._before[number] = signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, _frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
            with suppress(OSError):
                os.write(2, b"" if rank() else STOPPING)  # sys.stderr cannot be entered again where the signal met it
        else:
            self._act(number)

    def _act(self, number: int) -> None:
        self._came = None
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        self.broken |= kind is not None
        if self._came is not None and kind is None:
            self._act(self._came)

    def close(self) -> None:
        """Nothing: between two bodies signals act as before."""


class SharedSignals(HeldSignals):
    """The same for one rank of several: a signal to any of them acts in all, at the end of the same body. From the
    beginning to `close`, signals wait between two bodies, too, where one rank would leave the others waiting."""

    def __init__(self) -> None:
        super().__init__()
        super().__enter__()

    def __enter__(self) -> SharedSignals:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.broken |= kind is not None
        if kind is None and (number := max(every_rank(self._came or 0))):
            self._act(number)

    def close(self) -> None:
        """Signals act as before; one that came since the last body does so now."""
        self._restore()
        if self._came is not None:
            signal.raise_signal(self._came)
