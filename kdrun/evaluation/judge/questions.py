"""What is asked about an evaluation, and what asking will cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrun.errors import UserError
from kdrun.evaluation.judge.prompts import DIVERSITY, PAIRWISE, QUALITY, instruction_of, numbered
from kdrun.evaluation.judge.subjects import Example, samples_of, text_of

REFERENCES = "references"  # against the human text, not a run


@dataclass(frozen=True)
class Question:
    """One question to the judge. task: quality, diversity or pairwise; order, of pairwise: AB when the judged text
    stands first, BA when the other does."""

    task: str
    index: int
    order: str | None
    prompt: str


@dataclass(frozen=True)
class JudgedSet:
    """One evaluation folder, what is asked about it, and the texts that quality and pairwise are about."""

    folder: Path
    suite: str
    indices: Sequence[int]
    questions: list[Question]
    texts: list[str]
    others: list[str]  # the other side of the pairs; empty when there is none


def judged_set(
    folder: Path,
    suite: str,
    rows: Sequence[Example],
    indices: Sequence[int],
    *,
    decoding: str,
    scores: Sequence[str],
    against: tuple[Path, Sequence[Example]] | str | None,
) -> JudgedSet:
    """The questions about one evaluation.

    Args:
        scores: of quality and diversity.
        against: another evaluation of the same prompts, or `REFERENCES`: the first reference of each example.
    """
    texts = [text_of(rows[i], decoding, folder=folder) for i in indices]
    others: list[str] = []
    if isinstance(against, tuple):
        others = [text_of(against[1][i], decoding, folder=against[0]) for i in indices]
    elif against == REFERENCES:
        if missing := [i for i in indices if not rows[i].get("references")]:
            raise UserError(f"against={REFERENCES}: example {missing[0]} of {folder} has none; type against=DIR")
        others = [str(rows[i]["references"][0]) for i in indices]
    questions = []
    for position, i in enumerate(indices):
        row, text = rows[i], texts[position]
        instruction = instruction_of(row["instruction"], row.get("input") or "")
        if "quality" in scores:
            questions.append(Question("quality", i, None, QUALITY.format(instruction=instruction, response=text)))
        if "diversity" in scores:
            samples = numbered(samples_of(row, folder=folder))
            prompt = DIVERSITY.format(instruction=instruction, responses=samples)
            questions.append(Question("diversity", i, None, prompt))
        if others:
            other = others[position]
            for order, first, second in (("AB", text, other), ("BA", other, text)):
                prompt = PAIRWISE.format(instruction=instruction, first=first, second=second)
                questions.append(Question("pairwise", i, order, prompt))
    return JudgedSet(folder, suite, indices, questions, texts, others)


@dataclass(frozen=True)
class Estimate:
    """What is still to be sent. cost: in the unit of the prices, None when one of them is not known."""

    num_requests: int
    num_cached: int
    tokens_in: int
    tokens_out: int  # at most
    cost: float | None

    def __str__(self) -> str:
        cost = (
            "cost unknown: give judge.input_price and judge.output_price, per million tokens"
            if self.cost is None
            else f"cost at most {self.cost:.4g}"
        )
        return (
            f"{self.num_requests} requests to send ({self.num_cached} more are answered in the cache), about "
            f"{self.tokens_in} tokens in (the larger of 1.3 a word and 1 for 4 bytes), at most {self.tokens_out} out; "
            f"{cost}"
        )


def estimate(
    prompts: Iterable[str],
    *,
    num_cached: int,
    max_tokens: int,
    input_price: float | None,
    output_price: float | None,
) -> Estimate:
    """The cost of prompts that are not in the cache.

    Args:
        input_price, output_price: per million tokens.
    """
    counts = [num_tokens(prompt) for prompt in prompts]
    tokens_in, tokens_out = sum(counts), max_tokens * len(counts)
    return Estimate(
        len(counts), num_cached, tokens_in, tokens_out, cost(tokens_in, tokens_out, input_price, output_price)
    )


def cost(tokens_in: int, tokens_out: int, input_price: float | None, output_price: float | None) -> float | None:
    """Of so many tokens at these prices per million; None without a price."""
    if input_price is None or output_price is None:
        return None
    return (tokens_in * input_price + tokens_out * output_price) / 1e6


def num_tokens(text: str) -> int:
    """A rough count, without the judge's tokenizer: 1.3 a word, but 1 for 4 UTF-8 bytes where that is more (code,
    languages without spaces)."""
    return round(max(1.3 * len(text.split()), len(text.encode()) / 4))
