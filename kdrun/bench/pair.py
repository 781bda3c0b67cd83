"""A pair of random models and rows of tokens, and kdrun's own loop on them: what `step` and `cache` train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Example
from kdrun.data.template import render_prompt
from kdrun.models.loading import load_tokenizer
from kdrun.models.scratch import make_model, train_tokenizer
from kdrun.training.batches import RowOrder

if TYPE_CHECKING:
    from kdrun.losses import Loss
    from kdrun.teachers.live import Teacher
    from kdrun.training.loop import Loop

LEARNING_RATE = 5e-4
Size = tuple[int, int, int]  # layers, width, heads


def tokenizer_of(examples: Sequence[Example], folder: str | None, *, vocabulary: int) -> Any:
    """The tokenizer of a folder; None makes one of the examples' texts, of 4,096 entries at most."""
    if folder is not None:
        return load_tokenizer(folder, key="bench.tokenizer")
    texts = (text for e in examples for text in (render_prompt(e, "alpaca"), e.response))
    return train_tokenizer(texts, vocab_size=min(vocabulary, 4096))


@dataclass(frozen=True)
class Pair:
    """What to train on what, in plain values. tokenizer: a folder; None makes one of the examples' texts."""

    examples: Sequence[Example] = field(repr=False)
    tokenizer: str | None
    vocabulary: int
    student: Size
    teacher: Size
    max_prompt_tokens: int
    max_tokens: int
    batch_size: int
    precision: str
    device: str
    seed: int

    @property
    def label(self) -> str:
        """Models, batch and precision."""
        models = ", ".join(
            f"{role} {layers} x {width}"
            for role, (layers, width, _) in (("student", self.student), ("teacher", self.teacher))
        )
        return (
            f"{models}, vocabulary {self.vocabulary:,}, batch {self.batch_size}, at most {self.max_tokens} tokens a "
            f"row, {self.precision}"
        )

    @property
    def sizes(self) -> dict[str, float]:
        """Batch, longest row and vocabulary."""
        return {"batch_size": self.batch_size, "max_tokens": self.max_tokens, "vocabulary": self.vocabulary}

    def build(self) -> PairInputs:
        """Encoded rows, a whole number of batches of them."""
        tokenizer = tokenizer_of(self.examples, self.tokenizer, vocabulary=self.vocabulary)
        rows = encode(
            self.examples, tokenizer, template="alpaca", max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.max_tokens, overlong="truncate",
        )  # fmt: skip
        rows = rows.subset(range(len(rows) - len(rows) % min(self.batch_size, len(rows))))
        return PairInputs(self, rows, tokenizer, max(self.vocabulary, len(tokenizer)))


@dataclass(frozen=True)
class PairInputs:
    """Rows and a tokenizer; models are made anew by whoever trains them, from one seed."""

    pair: Pair
    rows: EncodedSet
    tokenizer: Any
    vocabulary: int

    def student(self) -> Any:
        """The student in float32 on the CPU."""
        return self._model(self.pair.student)

    def teacher(self) -> Any:
        """The teacher on the CPU, in the precision that the pair trains in: it needs no master weights."""
        import torch

        return self._model(self.pair.teacher).to(torch.bfloat16 if self.pair.precision == "bf16" else torch.float32)

    def order(self) -> RowOrder:
        """The rows of each step."""
        return RowOrder(len(self.rows), batch_size=self.pair.batch_size, seed=self.pair.seed)

    def loop(self, loss: Loss, teacher: Teacher, *, num_steps: int) -> Loop:
        """kdrun's loop, objective and optimiser on a fresh student, put together as `kdrun train kd_ratio=1` does."""
        from accelerate import Accelerator

        from kdrun.training.loop import Loop, LoopSettings
        from kdrun.training.objective import StudentObjective
        from kdrun.training.optimizer import make_optimizer
        from kdrun.training.placement import Placement

        pair = self.pair
        accelerator = Accelerator(
            cpu=pair.device == "cpu", mixed_precision="bf16" if pair.precision == "bf16" else "no"
        )
        student = self.student().train()
        return Loop(
            Placement(
                StudentObjective(student, loss, kd_ratio=1.0),
                lambda: make_optimizer(student, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
                accelerator,
            ),
            self.rows,
            LoopSettings(
                num_steps=num_steps, batch_size=pair.batch_size, micro_batch_size=None, seed=pair.seed, clip_norm=1.0,
                learning_rate=lambda _: LEARNING_RATE, log_every=num_steps + 1,
            ),
            teacher=teacher,
            pad_id=self.tokenizer.pad_token_id,
        )  # fmt: skip

    def _model(self, size: Size) -> Any:
        layers, width, heads = size
        return make_model(
            vocab_size=self.vocabulary, context=self.pair.max_tokens, layers=layers, width=width, heads=heads,
            end_id=self.tokenizer.eos_token_id, seed=self.pair.seed,
        )  # fmt: skip
