"""One instruction with its references, and the division of a set into train, validation and test."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """An instruction, an optional input ("" for none), and one or more references: texts that would do as an answer."""

    instruction: str
    input: str
    references: tuple[str, ...]

    @property
    def response(self) -> str:
        """The reference that training learns from: the first."""
        return self.references[0]

    @property
    def prompt_key(self) -> tuple[str, str]:
        """What two examples share when they ask the same thing."""
        return self.instruction, self.input


@dataclass(frozen=True)
class Splits:
    """The three parts of a set; `test` may be empty, the other two are not when they come from `load_splits`."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]


def split_by_hash(examples: Sequence[Example], valid_percent: int = 5, *, test_percent: int = 5) -> Splits:
    """Divide by a hash of the prompt; what is neither validation nor test is train.

    A prompt's place hangs on its own text alone: not on the order, the other rows, a seed or the machine. So identical
    prompts never sit in two splits, and adding rows moves none. The shares are met on average, not exactly: a small set
    may leave a split empty. Each split keeps the order of `examples`.

    Raises ValueError when the percentages are negative or leave nothing for train.
    """
    if valid_percent < 0 or test_percent < 0 or valid_percent + test_percent >= 100:
        raise ValueError(f"valid_percent={valid_percent}, test_percent={test_percent}: from 0 up, below 100 together")
    splits = Splits(train=[], valid=[], test=[])
    for example in examples:
        getattr(splits, split_of(example, valid_percent, test_percent=test_percent)).append(example)
    return splits


def split_of(example: Example, valid_percent: int, *, test_percent: int) -> str:
    """train, valid or test: where `split_by_hash` puts an example.

    By a number in [0, 100), uniform over prompts: the first 8 bytes of sha256(instruction NUL input).
    """
    digest = hashlib.sha256(f"{example.instruction}\0{example.input}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") * 100 / 2**64
    return "test" if place < test_percent else "valid" if place < test_percent + valid_percent else "train"


def fill_splits(train: Sequence[Example], valid: Sequence[Example] | None, test: Sequence[Example] | None) -> Splits:
    """The three parts of a set of which some are missing (None): those are carved from train, 5 percent each."""
    carved = split_by_hash(train, 5 if valid is None else 0, test_percent=5 if test is None else 0)
    return Splits(
        train=carved.train,
        valid=carved.valid if valid is None else list(valid),
        test=carved.test if test is None else list(test),
    )


def count_shared_prompts(examples: Sequence[Example], train: Sequence[Example]) -> int:
    """How many of `examples` ask what some example of `train` asks too: leakage, when `examples` are held out."""
    seen = {example.prompt_key for example in train}
    return sum(example.prompt_key in seen for example in examples)
