"""kdrun evaluate: one model on its own: which one it is, its teacher, its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import Models, choose_device, evaluation_sets, relative
from kdrun.commands.preconditions import recorded_parts
from kdrun.commands.random_init import random_mark
from kdrun.commands.scoring import evaluate_model
from kdrun.commands.teachers import RunTeacher, load_live
from kdrun.config import Data, EvaluateConfig, Pair, PretrainedPair
from kdrun.errors import UserError
from kdrun.models.loading import load_model, load_tokenizer, locate, quiet_libraries
from kdrun.runs.directory import RunDirectory
from kdrun.runs.tracker import Tracker


def evaluate(config: EvaluateConfig, directory: Path, *, overrides: Sequence[str]) -> float:
    """Run an evaluate config in `directory`. Returns the ROUGE-L of its first decoding (NaN without one)."""
    subject = resolve_subject(config)
    resolved = config.model_dump(mode="json")
    run = RunDirectory.start(
        directory, command="evaluate", config=resolved, overrides=overrides,
        extra={"name": config.name, "subject": subject.reference, "role": config.role, **random_mark(subject.pair)},
    )  # fmt: skip
    with run.recorded():
        quiet_libraries()
        device = choose_device(config.device, key="device")
        tokenizer = load_tokenizer(subject.reference, key="student", trust_remote_code=subject.remote)
        model = load_model(subject.reference, key="student", trust_remote_code=subject.remote)
        models = Models(tokenizer, model.to(device))
        sets = evaluation_sets(config.eval, subject.data, tokenizer)
        teacher = RunTeacher()
        if subject.teacher is not None:
            rows = {name: one.rows for name, one in sets.items()}
            teacher = load_live(subject.teacher, models, rows, pair=subject.pair, device=device)
        tracker = Tracker(
            config.track.mode, directory=directory, project=config.track.project, entity=config.track.entity,
            name=f"evaluate-{config.name}", group=None, job_type="evaluate",
            tags=[subject.data.name, config.eval.name], config=resolved,
        )  # fmt: skip
        try:
            summary = evaluate_model(
                models, sets, subject.data, config.eval, directory=directory, teachers=teacher.sets, device=device,
                tracker=tracker,
            )  # fmt: skip
        except BaseException:
            tracker.finish({}, failed=True)
            raise
        tracker.finish(summary)
        print_summary(summary, subject.reference, directory)
    return next((summary[name] for name in summary if name.endswith("rouge_l")), float("nan"))


class Subject:
    """What is evaluated: a model, its teacher if any, and the data."""

    def __init__(self, reference: str, *, teacher: str | None, data: Data, pair: Pair | None, remote: bool) -> None:
        self.reference, self.teacher, self.data, self.remote = reference, teacher, data, remote
        # A run's record may have been sent by someone: whether its models' code runs is for the person here to say.
        if isinstance(pair, PretrainedPair):
            pair = pair.model_copy(update={"trust_remote_code": remote})
        self.pair = pair


def resolve_subject(config: EvaluateConfig) -> Subject:
    """The model that an evaluate config means; a run brings its own data, pair and teacher."""
    remote = config.trust_remote_code
    if config.run is None:
        assert config.data is not None
        if config.pair is None:
            assert config.student is not None
            return Subject(config.student, teacher=config.teacher_path, data=config.data, pair=None, remote=remote)
        reference = getattr(config.pair, config.role, None)
        if reference is None:
            raise UserError(f"role={config.role}: pair={config.pair.name} has none that is made already; use run=DIR")
        teacher = config.teacher_path or (config.pair.teacher if config.role != "teacher" else None)
        remote = remote or bool(getattr(config.pair, "trust_remote_code", False))
        return Subject(reference, teacher=teacher, data=config.data, pair=config.pair, remote=remote)
    run = RunDirectory.open(config.run, key="run")
    ran = run.config()
    pair, data = recorded_parts(run)
    data = config.data or data
    if ran.get("role") == "teacher":
        return Subject(str(run.path), teacher=config.teacher_path, data=data, pair=pair, remote=remote)
    if config.role == "teacher":
        return Subject(locate(pair.teacher, key="pair.teacher"), teacher=None, data=data, pair=pair, remote=remote)
    return Subject(str(run.path), teacher=config.teacher_path or pair.teacher, data=data, pair=pair, remote=remote)


def print_summary(summary: dict[str, Any], subject: str, directory: Path) -> None:
    """A table of an evaluation on standard output, one for each suite: what texts have, greedy beside sampled."""
    from rich.console import Console
    from rich.table import Table

    lines: dict[str, dict[str, dict[str, Any]]] = {}  # suite -> metric -> column -> value
    for key, value in summary.items():
        suite, column, metric = _place(key)
        lines.setdefault(suite, {}).setdefault(metric, {})[column] = value
    console = Console()
    for suite, metrics in lines.items():
        console.print(f"{subject} {suite}".rstrip(), highlight=False, soft_wrap=True)
        table = Table(header_style="bold")
        table.add_column("metric")
        columns = [c for c in ("", "greedy", "sample", "sd") if any(c in values for values in metrics.values())]
        for column in columns:
            table.add_column({"sample": "sampled", "sd": "sd over seeds"}.get(column, column), justify="right")
        for metric, values in metrics.items():
            table.add_row(metric, *(_spell(values.get(column)) for column in columns))
        console.print(table)
    console.print(f"[dim]{relative(directory)}[/dim]")


def _place(key: str) -> tuple[str, str, str]:
    """Suite, column and metric of a key of the summary: vicuna/sample/rouge_l_sd -> vicuna, sd, rouge_l."""
    if key.startswith("harness/"):
        return "", "", key
    *before, metric = key.split("/")
    column = before.pop() if before and before[-1] in ("greedy", "sample") else ""
    suite = before[0] if before else ""
    return (suite, "sd", metric.removesuffix("_sd")) if metric.endswith("_sd") else (suite, column, metric)


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
