"""What an evaluation finds of a model: agreement, generations, their scores; the same after training and on its own."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import EvaluationSet, Models
from kdrun.commands.teachers import AnyTeacher, shared_rows_of
from kdrun.config import Data, Evaluation
from kdrun.data.encoding import EncodedSet
from kdrun.runs.directory import write_json, write_text
from kdrun.runs.progress import progress
from kdrun.runs.records import json_lines
from kdrun.runs.tracker import Tracker

PerExample = dict[str, list[float]]  # metric -> one value an example
Scores = dict[str, PerExample]  # decoding -> its scores
Summary = dict[str, Any]
ROWS_IN_TRACKER = 100  # of the table of generations


def evaluate_model(
    models: Models,
    sets: Mapping[str, EvaluationSet],
    data: Data,
    settings: Evaluation,
    *,
    directory: Path,
    teachers: Mapping[str, AnyTeacher],
    device: str,
    tracker: Tracker,
) -> Summary:
    """The summary of an evaluation, written to `directory` with examples and protocol; every suite has a folder.

    Args:
        sets: what is evaluated, by the name under which `teachers` has its teacher, if any.
    """
    check_room(models.student, sets, settings)
    models.student.to(device).eval()
    scorer = Scorer(models.tokenizer, settings, device)
    summary: Summary = {}
    for name, one in sets.items():
        folder = directory / one.suite if one.suite else directory
        found = _evaluate_set(models, one, settings, scorer, folder=folder, teacher=teachers.get(name), device=device)
        protocol = {"fingerprint": one.rows.fingerprint(), "dropped": one.rows.num_dropped, "suite": one.suite}
        protocol |= {"settings": settings.model_dump(mode="json"), "data": data.model_dump(mode="json")}
        write_json(folder / "protocol.json", protocol | scorer.protocol)
        write_json(folder / "summary.json", found)
        summary |= {f"{one.suite}/{metric}": value for metric, value in found.items()} if one.suite else found
        _show_generations(tracker, f"eval/{settings.name}" + (f"/{one.suite}" if one.suite else ""), folder)
    if settings.harness:
        summary |= _run_harness(models, settings, directory, device)
    write_json(directory / "summary.json", summary)
    return summary


def check_room(model: Any, sets: Mapping[str, EvaluationSet], settings: Evaluation) -> None:
    """The texts fit the model's positions: to be asked before a long training, not after it.

    Raises:
        UserError: when they do not.
    """
    from kdrun.generation.generate import refuse_overrun

    if settings.greedy or settings.seeds:
        for one in sets.values():
            refuse_overrun(model, int(one.rows.prompt_lengths.max()), settings.max_new_tokens)


@dataclass(frozen=True)
class Decoded:
    """One text a prompt, its tokens, and whether each ended by itself."""

    texts: list[str]
    num_tokens: list[int]
    finished: list[bool]


def _evaluate_set(
    models: Models,
    one: EvaluationSet,
    settings: Evaluation,
    scorer: Scorer,
    *,
    folder: Path,
    teacher: AnyTeacher | None,
    device: str,
) -> Summary:
    started = time.monotonic()
    summary, per_row = _agreement(models, teacher, one, settings)
    generating = time.monotonic()
    decodings = _generate(models, one.rows, settings)
    generate_s = time.monotonic() - generating
    scores, together, means = _score(scorer, decodings, one)
    summary |= means
    tokens = sum(sum(decoded.num_tokens) for decoded in decodings.values())
    summary |= {"num_examples": len(one.examples), "generate_s": round(generate_s, 2)}
    summary |= {"generated_tokens_per_s": round(tokens / max(generate_s, 1e-9), 1)} if tokens else {}
    lines = []
    for i, example in enumerate(one.examples):
        row: dict[str, Any] = {"instruction": example.instruction}
        row |= {"input": example.input, "references": list(example.references)}
        row |= {name: values[i] for name, values in (per_row | together).items()}
        for name, decoded in decodings.items():
            row[name] = {"text": decoded.texts[i], **{metric: values[i] for metric, values in scores[name].items()}}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_text(folder / "examples.jsonl", "".join(line + "\n" for line in lines))
    return summary | {"eval_s": round(time.monotonic() - started, 2)}


def _agreement(
    models: Models, teacher: AnyTeacher | None, one: EvaluationSet, settings: Evaluation
) -> tuple[Summary, PerExample]:
    from kdrun.evaluation.agreement import agreement, count_response_bytes

    with progress("agreement", len(one.rows)) as advance:
        result = agreement(
            models.student, teacher, one.rows, pad_id=models.tokenizer.pad_token_id, batch_size=settings.batch_size,
            rows=shared_rows_of(teacher), eos_id=models.tokenizer.eos_token_id,
            response_bytes=count_response_bytes(one.rows, models.tokenizer), advance=advance,
        )  # fmt: skip
    return dict(result.means), result.rows


def _generate(models: Models, rows: EncodedSet, settings: Evaluation) -> dict[str, Decoded]:
    """The greedy decoding and one sample a seed, by name: greedy, seed10, ..."""
    from kdrun.generation.generate import Sampling, decode, generate

    fields = {
        name: getattr(settings, name)
        for name in ("max_new_tokens", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
    }
    wanted = {"greedy": (0.0, 0)} if settings.greedy else {}
    wanted |= {f"seed{seed}": (settings.temperature, seed) for seed in settings.seeds}
    prompts = [rows.prompt(i).tolist() for i in range(len(rows))]
    decodings, started, written = {}, time.monotonic(), 0
    with progress("generate", len(prompts) * len(wanted)) as bar:

        def advance(num_prompts: int, num_tokens: int) -> None:
            nonlocal written
            written += num_tokens
            bar.show(f"{written / max(time.monotonic() - started, 1e-9):,.0f} tokens/s")
            bar(num_prompts)

        for name, (temperature, seed) in wanted.items():
            generations = generate(
                models.student, prompts, Sampling(temperature=temperature, **fields),
                eos_id=models.tokenizer.eos_token_id, pad_id=models.tokenizer.pad_token_id,
                batch_size=settings.batch_size, seed=seed, advance=advance,
            )  # fmt: skip
            decodings[name] = Decoded(
                decode(generations, models.tokenizer),
                [len(g.token_ids) for g in generations],
                [g.finished for g in generations],
            )
    return decodings


class Scorer:
    """Every score of texts against their references, by one protocol; the models that it asks are loaded once."""

    def __init__(self, tokenizer: Any, settings: Evaluation, device: str) -> None:
        from kdrun.evaluation.diversity import diversity_protocol
        from kdrun.evaluation.exact_match import exact_match_protocol
        from kdrun.evaluation.length import length_protocol
        from kdrun.evaluation.rouge import rouge_protocol

        self.diversity = {"words": settings.diversity_words, "vocab_size": len(tokenizer)}
        self.models: list[Any] = []
        self.protocol: dict[str, Any] = {
            "rouge": rouge_protocol(), "exact_match": exact_match_protocol(), "length": length_protocol(),
            "diversity": diversity_protocol(**self.diversity),
        }  # fmt: skip
        if settings.bertscore:
            from kdrun.evaluation.bertscore import BertScore

            bertscore = BertScore(
                settings.bertscore_model,
                layer=settings.bertscore_layer,
                baseline=settings.bertscore_baseline,
                device=device,
            )
            self.models.append(bertscore)
            self.protocol["bertscore"] = bertscore.protocol()
        if settings.bartscore_model is not None:
            from kdrun.evaluation.bartscore import BartScore

            bartscore = BartScore(settings.bartscore_model, device=device)
            self.models.append(bartscore)
            self.protocol["bartscore"] = bartscore.protocol()

    def score(self, decoded: Decoded, references: list[list[str]]) -> tuple[PerExample, dict[str, float]]:
        """Every metric of every example of one decoding, and what only all of its texts together have."""
        from kdrun.evaluation.diversity import diversity
        from kdrun.evaluation.exact_match import exact_match
        from kdrun.evaluation.length import length_scores
        from kdrun.evaluation.rouge import rouge_scores

        values = rouge_scores(decoded.texts, references) | exact_match(decoded.texts, references)
        for model in self.models:
            values |= model.scores(decoded.texts, references)
        values |= length_scores(decoded.texts, references, num_tokens=decoded.num_tokens)
        values["finished"] = [100.0 * finished for finished in decoded.finished]
        alike = diversity(decoded.texts, **self.diversity)
        return values | alike.rows, alike.corpus


def _score(scorer: Scorer, decodings: Mapping[str, Decoded], one: EvaluationSet) -> tuple[Scores, PerExample, Summary]:
    """The scores of every decoding, those of the samples of a prompt together, and the means of both: greedy/METRIC;
    sample/METRIC as mean over the seeds, with sample/METRIC_sd beside it when there are several."""
    from kdrun.evaluation.diversity import sample_self_bleu

    references = [list(example.references) for example in one.examples]
    scores: Scores = {}
    means: dict[str, dict[str, float]] = {}
    for name, decoded in decodings.items():
        scores[name], of_all = scorer.score(decoded, references)
        means[name] = {metric: statistics.fmean(values) for metric, values in scores[name].items()} | of_all
    summary: Summary = {f"greedy/{metric}": value for metric, value in means.pop("greedy", {}).items()}
    for metric in next(iter(means.values()), {}):
        over_seeds = [mean[metric] for mean in means.values()]
        summary[f"sample/{metric}"] = statistics.fmean(over_seeds)
        if len(over_seeds) > 1:
            summary[f"sample/{metric}_sd"] = statistics.stdev(over_seeds)
    together: PerExample = {}
    if len(means) > 1:
        together["prompt_self_bleu"] = sample_self_bleu([decodings[name].texts for name in means])
        summary["sample/prompt_self_bleu"] = statistics.fmean(together["prompt_self_bleu"])
    return scores, together, summary


def _run_harness(models: Models, settings: Evaluation, directory: Path, device: str) -> Summary:
    """Metrics of lm-evaluation-harness tasks; every example's record in harness.jsonl."""
    from kdrun.evaluation.harness import run_harness

    result = run_harness(
        models.student, models.tokenizer, settings.harness, batch_size=settings.batch_size, device=device,
        include_path=settings.harness_path, limit=settings.harness_limit,
    )  # fmt: skip
    records = [{"task": task, **one} for task, examples in result.examples.items() for one in examples]
    write_text(directory / "harness.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    write_json(directory / "harness.json", result.protocol)
    return dict(result.summary)


def _show_generations(tracker: Tracker, name: str, folder: Path) -> None:
    """The first examples of an evaluation with what was written, as a table of the tracker."""
    rows = [json.loads(line) for line in json_lines(folder / "examples.jsonl")[:ROWS_IN_TRACKER]]
    decodings = [key for key, value in rows[0].items() if isinstance(value, dict)] if rows else []
    header = ["instruction", "input", "reference", *(f"{d}{part}" for d in decodings for part in ("", " ROUGE-L"))]
    cells = [
        [row["instruction"], row["input"], row["references"][0]]
        + [value for d in decodings for value in (row[d]["text"], row[d]["rouge_l"])]
        for row in rows
    ]
    tracker.table(name, header, cells)
