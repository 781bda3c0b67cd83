"""A training loop in a process of its own that does one step a call, so that whole trainers can be timed in turns.

The loop runs as it always does; at the end of every step it calls `pause`, which holds the process until the next call.
A process that waits takes no time from the others, and its highest memory is its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from kdrun.bench.memory import PeakMeter, silence

Run = Callable[[Any, "Lane"], None]


class _Stopped(Exception):
    """The other side wants no further step."""


class Lane:
    """The inner side: what a contestant's loop talks to."""

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection, self._device = connection, device

    def pause(self) -> None:
        """To be called after every optimiser step: hands over, and waits for the next call."""
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        self._connection.send(("done", None))
        if self._connection.recv() == "stop":
            raise _Stopped


class LaneWork:
    """The outer side, a contestant's work: one optimiser step a call. The first call starts the process and builds."""

    def __init__(
        self, run: Run, inputs: Any, *, device: str, threads: int | None, units: Mapping[str, Sequence[int]]
    ) -> None:
        """
        Args:
            run: a module's function, `run(inputs, lane)`; it is imported in the new process.
            units: name -> how many of them each step does (tokens), to report them per second.
        """
        context = get_context("spawn")
        self._connection, inner = context.Pipe()
        self._process = context.Process(target=_run_lane, args=(run, inputs, inner, device, threads), daemon=True)
        self._units = units

    def __call__(self) -> None:
        """Do one step."""
        if self._process.pid is None:
            self._process.start()
        else:
            self._connection.send("go")
        self._answer()

    def close(self) -> int:
        """End the process; the most bytes it held at once, libraries included."""
        self._connection.send("stop")
        peak_bytes = self._answer()
        self._process.join()
        return int(peak_bytes)

    def figures(self, seconds: Sequence[float]) -> dict[str, float]:
        """Each unit per second over the timed steps; the first step was the warm-up."""
        if not seconds:
            return {}
        num = len(seconds)
        return {f"{name}_per_s": sum(counts[1 : num + 1]) / sum(seconds) for name, counts in self._units.items()}

    def _answer(self) -> Any:
        while not self._connection.poll(0.2):
            if not self._process.is_alive() and not self._connection.poll():
                raise RuntimeError(f"its process ended with exit code {self._process.exitcode}")
        kind, value = self._connection.recv()
        if kind == "error":
            self._process.join()
            raise RuntimeError(value)
        return value


def _run_lane(run: Run, inputs: Any, connection: Connection, device: str, threads: int | None) -> None:
    import torch

    silence()
    warnings.simplefilter("ignore")  # advice of the libraries to their callers, which we are not here to follow
    if threads is not None:
        torch.set_num_threads(threads)
    lane = Lane(connection, device)
    try:
        run(inputs, lane)
        connection.send(("error", "the loop ended before it was stopped"))
    except _Stopped:
        connection.send(("peak", PeakMeter(device).peak_bytes()))
    except Exception as error:  # told to the other side, which raises it
        connection.send(("error", f"{type(error).__name__}: {error}"))
