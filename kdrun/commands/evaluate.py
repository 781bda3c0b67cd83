"""kdrun evaluate: generate and score one model; the same evaluation closes every training."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdrun.commands.assembly import Models, choose_device, evaluated_rows, load_data, relative
from kdrun.commands.teachers import AnyTeacher, live_teacher, run_live, shared_rows_of
from kdrun.config import Data, EvaluateConfig, Evaluation, Pair
from kdrun.data.encoding import EncodedSet
from kdrun.data.examples import Splits
from kdrun.errors import UserError
from kdrun.models.loading import load_model, load_tokenizer, locate, quiet_libraries
from kdrun.runs.directory import RunDirectory, write_json, write_text
from kdrun.runs.progress import progress
from kdrun.runs.tracker import Tracker

log = logging.getLogger(__name__)
PerExample = dict[str, list[float]]  # metric -> one value an example


def evaluate(config: EvaluateConfig, directory: Path, *, overrides: Sequence[str]) -> float:
    """Run an evaluate config in `directory`. Returns the ROUGE-L of its first decoding."""
    subject = resolve_subject(config)
    resolved = config.model_dump(mode="json")
    run = RunDirectory.start(
        directory, command="evaluate", config=resolved, overrides=overrides,
        extra={"name": config.name, "subject": subject.reference, "role": config.role},
    )  # fmt: skip
    with run.recorded():
        quiet_libraries()
        device = choose_device(config.device)
        splits = load_data(subject.data)
        tokenizer = load_tokenizer(subject.reference, key="student", trust_remote_code=subject.remote)
        model = load_model(subject.reference, key="student", trust_remote_code=subject.remote)
        models = Models(tokenizer, model.to(device))
        teacher = None
        if subject.teacher is not None:
            _, rows = evaluated_rows(splits, tokenizer, subject.data, config.eval)
            teacher = load_live(subject.teacher, models, rows, pair=subject.pair, device=device)
        tracker = Tracker(
            config.track.mode, directory=directory, project=config.track.project, entity=config.track.entity,
            name=f"evaluate-{config.name}", group=None, job_type="evaluate",
            tags=[subject.data.name, config.eval.name], config=resolved,
        )  # fmt: skip
        summary = evaluate_model(
            models, splits, subject.data, config.eval, directory=directory, teacher=teacher, device=device
        )
        tracker.finish(summary)
        print_summary(summary, subject.reference, directory)
    return summary[next(name for name in summary if name.endswith("rouge_l"))]


class Subject:
    """What is evaluated: a model, its teacher if any, and the data."""

    def __init__(self, reference: str, *, teacher: str | None, data: Data, pair: Pair | None) -> None:
        self.reference, self.teacher, self.data, self.pair = reference, teacher, data, pair
        self.remote = bool(getattr(pair, "trust_remote_code", False))


def resolve_subject(config: EvaluateConfig) -> Subject:
    """The model that an evaluate config means; a run brings its own data, pair and teacher."""
    if config.run is None:
        assert config.data is not None
        if config.pair is None:
            assert config.student is not None
            return Subject(config.student, teacher=config.teacher_path, data=config.data, pair=None)
        reference = getattr(config.pair, config.role, None)
        if reference is None:
            raise UserError(f"role={config.role}: pair={config.pair.name} has none that is made already; use run=DIR")
        teacher = config.teacher_path or (config.pair.teacher if config.role != "teacher" else None)
        return Subject(reference, teacher=teacher, data=config.data, pair=config.pair)
    run = RunDirectory.open(config.run, key="run")
    ran = run.config()
    pair: Pair = TypeAdapter(Pair).validate_python(ran["pair"])
    data: Data = config.data or TypeAdapter(Data).validate_python(ran["data"])
    if ran.get("role") == "teacher":
        return Subject(str(run.path), teacher=config.teacher_path, data=data, pair=pair)
    if config.role == "teacher":
        return Subject(locate(pair.teacher, key="pair.teacher"), teacher=None, data=data, pair=pair)
    return Subject(str(run.path), teacher=config.teacher_path or pair.teacher, data=data, pair=pair)


def load_live(reference: str, models: Models, rows: EncodedSet, *, pair: Pair | None, device: str) -> AnyTeacher:
    """A teacher's model, loaded for an evaluation alone."""
    return run_live(*live_teacher(reference, models, rows, pair=pair, device=device), reference).sets["eval"]


def evaluate_model(
    models: Models,
    splits: Splits,
    data: Data,
    settings: Evaluation,
    *,
    directory: Path,
    teacher: AnyTeacher | None,
    device: str,
) -> dict[str, float]:
    """Agreement, generations and their scores; writes summary.json, examples.jsonl and protocol.json in `directory`.

    Args:
        teacher: of the evaluated rows; None: no agreement with a teacher.
    """
    started = time.monotonic()
    kept, encoded = evaluated_rows(splits, models.tokenizer, data, settings)
    models.student.to(device).eval()
    summary, per_row = _agreement(models, teacher, encoded, settings)
    decodings = _generate(models, encoded, settings, device)
    score, protocol_of_scores = scorer(settings, device)
    scores = {name: score(decoded.texts, [list(e.references) for e in kept]) for name, decoded in decodings.items()}
    summary |= _summarise(scores, decodings)
    summary |= {"num_examples": len(kept), "eval_s": round(time.monotonic() - started, 2)}
    lines = []
    for i, example in enumerate(kept):
        row: dict[str, Any] = {"instruction": example.instruction}
        row |= {"input": example.input, "references": list(example.references)}
        row |= {name: values[i] for name, values in per_row.items()}
        for name, decoded in decodings.items():
            row[name] = {"text": decoded.texts[i], "finished": decoded.finished[i]}
            row[name] |= {metric: values[i] for metric, values in scores[name].items()}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_text(directory / "examples.jsonl", "".join(line + "\n" for line in lines))
    protocol: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "data": data.model_dump(mode="json")}
    protocol |= {"fingerprint": encoded.fingerprint(), "dropped": encoded.num_dropped}
    protocol |= protocol_of_scores
    write_json(directory / "protocol.json", protocol)
    write_json(directory / "summary.json", summary)
    return summary


def _agreement(
    models: Models, teacher: AnyTeacher | None, encoded: EncodedSet, settings: Evaluation
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    from kdrun.evaluation.agreement import agreement

    with progress("agreement", len(encoded)) as advance:
        result = agreement(
            models.student, teacher, encoded, pad_id=models.tokenizer.pad_token_id, batch_size=settings.batch_size,
            rows=shared_rows_of(teacher), advance=advance,
        )  # fmt: skip
    return dict(result.means), result.rows


class Decoded:
    """One text a prompt, and whether each ended by itself."""

    def __init__(self, texts: list[str], finished: list[bool]) -> None:
        self.texts, self.finished = texts, finished


def _generate(models: Models, encoded: EncodedSet, settings: Evaluation, device: str) -> dict[str, Decoded]:
    """The greedy decoding and one sample a seed, by name: greedy, seed10, ..."""
    from kdrun.evaluation.generation import Sampling, decode, generate

    fields = {
        name: getattr(settings, name)
        for name in ("max_new_tokens", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
    }
    wanted = {"greedy": (0.0, 0)} if settings.greedy else {}
    wanted |= {f"seed{seed}": (settings.temperature, seed) for seed in settings.seeds}
    prompts = [encoded.prompt(i).tolist() for i in range(len(encoded))]
    decodings = {}
    with progress("generate", len(prompts) * len(wanted)) as advance:
        for name, (temperature, seed) in wanted.items():
            generations = generate(
                models.student, prompts, Sampling(temperature=temperature, **fields),
                eos_id=models.tokenizer.eos_token_id, pad_id=models.tokenizer.pad_token_id,
                batch_size=settings.batch_size, seed=seed, advance=advance,
            )  # fmt: skip
            decodings[name] = Decoded(decode(generations, models.tokenizer), [g.finished for g in generations])
    return decodings


def scorer(
    settings: Evaluation, device: str
) -> tuple[Callable[[list[str], list[list[str]]], PerExample], dict[str, Any]]:
    """A function of texts and references that gives every metric of every example, and the protocol it follows."""
    from kdrun.evaluation.rouge import rouge_protocol, rouge_scores

    protocol: dict[str, Any] = {"rouge": rouge_protocol()}
    bertscore = None
    if settings.bertscore:
        from kdrun.evaluation.bertscore import BertScore

        bertscore = BertScore(
            settings.bertscore_model,
            layer=settings.bertscore_layer,
            baseline=settings.bertscore_baseline,
            device=device,
        )
        protocol["bertscore"] = bertscore.protocol()

    def score(texts: list[str], references: list[list[str]]) -> PerExample:
        values = dict(rouge_scores(texts, references))
        values["exact_match"] = [100.0 * (text in refs) for text, refs in zip(texts, references, strict=True)]
        return values | (bertscore.scores(texts, references) if bertscore else {})

    return score, protocol


def _summarise(scores: dict[str, PerExample], decodings: dict[str, Decoded]) -> dict[str, Any]:
    """Means over examples: greedy/METRIC, and sample/METRIC as mean over the seeds with sample/METRIC_sd beside it."""
    means = {
        name: {metric: statistics.fmean(values) for metric, values in score.items()}
        | {"finished": 100 * statistics.fmean(decodings[name].finished)}
        for name, score in scores.items()
    }
    summary: dict[str, Any] = {f"greedy/{metric}": value for metric, value in means.pop("greedy", {}).items()}
    for metric in next(iter(means.values()), {}):
        over_seeds = [mean[metric] for mean in means.values()]
        summary[f"sample/{metric}"] = statistics.fmean(over_seeds)
        if len(over_seeds) > 1:
            summary[f"sample/{metric}_sd"] = statistics.stdev(over_seeds)
    return summary


def print_summary(summary: dict[str, Any], subject: str, directory: Path) -> None:
    """A small table of an evaluation on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{subject}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    console.print(f"[dim]{relative(directory)}[/dim]")
