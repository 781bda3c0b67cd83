"""kdrun bench generate: useful tokens per second of kdrun's generation loop and of transformers' generate.

The model has random weights and would never stop by itself, so every text ends at the length of the data's own response
(EOS counted): ours by its limits, generate by a stopping criterion, which costs it one comparison of B numbers a step.
EOS is switched off for both. Useful tokens are those up to a text's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kdrun.bench.contest import Contestant, Plan, Target
from kdrun.data.examples import Example

PAD = 0


@dataclass(frozen=True)
class Task:
    """The model, the prompts, and how many tokens each is continued by."""

    case: GenerateCase
    model: Any
    prompts: list[list[int]]
    lengths: list[int]


@dataclass(frozen=True)
class GenerateCase:
    """One model and one set of prompts, in plain values."""

    examples: Sequence[Example] = field(repr=False)
    tokenizer: str | None
    vocabulary: int
    layers: int
    width: int
    heads: int
    max_prompt_tokens: int
    max_new_tokens: int
    batch_sizes: tuple[int, ...]
    usual_batch_size: int
    temperature: float
    device: str
    seed: int

    @property
    def label(self) -> str:
        return (
            f"{len(self.examples)} prompts, responses of at most {self.max_new_tokens} tokens, {self.layers} x "
            f"{self.width}, vocabulary {self.vocabulary:,}, temperature {self.temperature:g}"
        )

    @property
    def sizes(self) -> dict[str, float]:
        return {"prompts": len(self.examples), "max_new_tokens": self.max_new_tokens, "vocabulary": self.vocabulary}

    def build(self) -> Task:
        """Prompts and lengths of the examples' responses; a fresh GPT-2."""
        from kdrun.bench.pair import tokenizer_of
        from kdrun.data.encoding import encode
        from kdrun.models.scratch import make_model

        tokenizer = tokenizer_of(self.examples, self.tokenizer, vocabulary=self.vocabulary)
        context = self.max_prompt_tokens + self.max_new_tokens
        rows = encode(
            self.examples, tokenizer, template="alpaca", max_prompt_tokens=self.max_prompt_tokens, max_tokens=context,
            overlong="truncate",
        )  # fmt: skip
        responses = (rows.lengths - rows.prompt_lengths).tolist()
        model = make_model(
            vocab_size=max(self.vocabulary, len(tokenizer)), context=context, layers=self.layers, width=self.width,
            heads=self.heads, end_id=tokenizer.eos_token_id, seed=self.seed,
        )  # fmt: skip
        return Task(
            self,
            model.to(self.device),
            [rows.prompt(i).tolist() for i in range(len(rows))],
            [min(length, self.max_new_tokens) for length in responses],
        )

    def contestants(self) -> list[Contestant]:
        """Ours at each batch size; generate as it is used, and with sorted prompts in a batch as large as ours."""
        usual, large = peer_names(self)
        return [
            *(Contestant(ours_name(size), partial(Writing, run_ours, size), "ours") for size in self.batch_sizes),
            Contestant(usual, partial(Writing, run_generate, self.usual_batch_size), "peer", "transformers"),
            Contestant(large, partial(Writing, run_sorted_generate, self.batch_sizes[-1]), "peer", "transformers"),
        ]


def plan(**values: Any) -> Plan:
    """One case, of the fields of GenerateCase. The target: the usual generate takes four times as long as ours, at each
    of our batch sizes."""
    case = GenerateCase(**values)
    usual, large = peer_names(case)
    ours = [ours_name(size) for size in case.batch_sizes]
    targets = [Target(usual, name, 4.0, at_least=True) for name in ours]
    targets.append(Target(large, ours[-1], 3.0, at_least=True))  # at the same batch
    return Plan([case], ours[-1], targets, memory_means="above model and prompts")


def ours_name(batch_size: int) -> str:
    """Of kdrun's loop."""
    return f"kdrun, batch {batch_size}"


def peer_names(case: GenerateCase) -> tuple[str, str]:
    """(generate as it is used, generate on sorted prompts in a larger batch)."""
    return f"generate, batch {case.usual_batch_size}", f"generate, sorted, batch {case.batch_sizes[-1]}"


class Writing:
    """A contestant's work: all texts once, and how many useful tokens that is a second."""

    def __init__(self, run: Callable[[Task, int], list[int]], batch_size: int, task: Task) -> None:
        self._run, self._batch_size, self._task = run, batch_size, task

    def __call__(self) -> None:
        """Write all texts."""
        if (lengths := self._run(self._task, self._batch_size)) != self._task.lengths:
            raise RuntimeError(f"texts of other lengths than asked for: {lengths[:8]}, not {self._task.lengths[:8]}")

    def figures(self, seconds: Sequence[float]) -> dict[str, float]:
        """Tokens per second, over all rounds."""
        return {"tokens_per_s": sum(self._task.lengths) * len(seconds) / sum(seconds)} if seconds else {}


def run_ours(task: Task, batch_size: int) -> list[int]:
    """kdrun's loop; returns the lengths of its texts."""
    from kdrun.generation.generate import Sampling, generate

    case = task.case
    sampling = Sampling(case.max_new_tokens, temperature=case.temperature)
    generations = generate(
        task.model, task.prompts, sampling, eos_id=-1, pad_id=PAD, batch_size=batch_size, seed=case.seed,
        limits=task.lengths,
    )  # fmt: skip
    return [len(generation.token_ids) for generation in generations]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Any]:
    """Ids and attention mask [B, P] of prompts of several lengths."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, ones = [torch.tensor(prompt) for prompt in prompts], [torch.ones(len(p), dtype=torch.long) for p in prompts]
    ids_BP = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side="left")
    mask_BP = pad_sequence(ones, batch_first=True, padding_side="left")
    return ids_BP, mask_BP


def run_sorted_generate(task: Task, batch_size: int) -> list[int]:
    """generate on prompts in the order of their lengths."""
    return run_generate(task, batch_size, order=sorted(range(len(task.prompts)), key=lambda i: len(task.prompts[i])))


def run_generate(task: Task, batch_size: int, *, order: Sequence[int] | None = None) -> list[int]:
    """transformers' generate, left-padded to the longest prompt of each batch, with its own sampling.

    A batch ends with its longest text, as it does when EOS ends the texts. Returns the lengths up to the ends.
    """
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    order = range(len(task.prompts)) if order is None else order
    sampled = {"do_sample": True, "temperature": task.case.temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=task.case.max_new_tokens, pad_token_id=PAD, eos_token_id=None,
        **(sampled if task.case.temperature else {"do_sample": False}),
    )  # fmt: skip
    # an absent EOS would be filled in from the model's own config
    task.model.generation_config = config
    found = [0] * len(task.prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        ids_BP, mask_BP = left_padded([task.prompts[i] for i in rows], PAD)
        width = ids_BP.shape[1]
        end_B = torch.tensor([width + task.lengths[i] for i in rows], device=task.model.device)
        output_BT = task.model.generate(
            input_ids=ids_BP.to(task.model.device),
            attention_mask=mask_BP.to(task.model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([lambda ids_BT, _, end_B=end_B: ids_BT.shape[1] >= end_B]),
        )
        for i in rows:
            found[i] = min(output_BT.shape[1] - width, task.lengths[i])
    return found
