"""DistiLLM's adaptive use of the student's text, and its replay buffer (Ko et al., arXiv 2402.03898, section 3.2).

As in the published finetune.py, with one draw for all ranks and a buffer a rank: at step i of I (from 0, there from 1),
r in [0, 1) and the threshold phi, r < phi (1 - i / I), or r < phi while the buffer is not full, writes new text and
puts it into the buffer; else r < phi draws from the buffer; else the data is learned. A validation loss of at least
`margin` above the reference raises phi by `threshold_step`, and becomes the reference; that is the loss before the
training at first, and never falls. So from phi = 0 nothing is ever written unless the student becomes worse than it was
at the start. That code's text has no EOS and is not learned from in its first token; here both are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.data.encoding import EncodedSet
from kdrun.rollouts.rollout import OnPolicy, Part, Rows
from kdrun.rollouts.writer import StudentWriter


class Adaptive(OnPolicy):
    """Steps on the student's text, new or replayed, as often as the validation loss asks for."""

    def __init__(
        self,
        encoded: EncodedSet,
        writer: StudentWriter,
        *,
        threshold: float,
        threshold_step: float,
        margin: float,
        buffer_size: int,
        num_steps: int,
        seed: int,
    ) -> None:
        """
        Args:
            threshold: phi at the start, in [0, 1]; margin: in nats per token; buffer_size: in texts.
        """
        super().__init__(encoded, writer, num_steps=num_steps, seed=seed)
        self.threshold, self.threshold_step, self.margin = threshold, threshold_step, margin
        self.buffer_size, self.buffer = buffer_size, encoded.subset([])
        self.reference: float | None = None

    def parts(self, step: int, rows: Rows) -> list[Part]:
        random, full = self.stream(step), len(self.buffer) >= self.buffer_size
        draw = random.random()
        writes = draw < self.threshold * (1 - step / self.num_steps) or (draw < self.threshold and not full)
        if draw < self.threshold and not writes:
            self.steps, self.student_steps = self.steps + 1, self.student_steps + 1
            order = random.permutation(len(self.buffer))
            return [Part("student", self.buffer, order[: len(rows)])]
        part = self._part(step, rows, writes)
        if writes:
            kept = [*_rows(self.buffer), *_rows(part.encoded)][-self.buffer_size :]
            self.buffer = _set_of(kept) if kept else self.buffer
        return [part]

    def validated(self, nats: float) -> None:
        if self.reference is None:
            self.reference = nats
        elif nats >= self.reference + self.margin:
            self.threshold, self.reference = min(1.0, self.threshold + self.threshold_step), nats

    def observe(self, seconds: float) -> dict[str, float]:
        return {**super().observe(seconds), "threshold": self.threshold, "buffer": float(len(self.buffer))}

    def state_dict(self) -> dict[str, Any]:
        rows = [[row.tolist(), prompt, index] for row, prompt, index in _rows(self.buffer)]
        return {**super().state_dict(), "threshold": self.threshold, "reference": self.reference, "buffer": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.threshold, self.reference = state["threshold"], state["reference"]
        if state["buffer"]:
            self.buffer = _set_of(state["buffer"])


def _rows(texts: EncodedSet) -> list[tuple[Any, int, int]]:
    """(ids, prompt length, example) of each text."""
    return [(*texts.row(i), int(texts.example_index[i])) for i in range(len(texts))]


def _set_of(rows: Sequence[tuple[Any, int, int]]) -> EncodedSet:
    ids, prompt_lengths, example_index = zip(*rows, strict=True)
    return EncodedSet.of_rows(ids, prompt_lengths, example_index)
