"""kdrun judge: ask a language model how good, how diverse and which better; estimate first, each question once."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import relative
from kdrun.config import JudgeConfig
from kdrun.errors import UserError
from kdrun.evaluation.judge.cache import Answer, AnswerCache
from kdrun.evaluation.judge.endpoint import Endpoint, ask_all
from kdrun.evaluation.judge.prompts import PROMPTS, prompt_hash
from kdrun.evaluation.judge.questions import REFERENCES, Estimate, JudgedSet, Question, cost, estimate, judged_set
from kdrun.evaluation.judge.subjects import (
    Example,
    check_same_prompts,
    choose,
    evaluation_folders,
    read_examples,
)
from kdrun.evaluation.judge.tally import read_verdict, tally
from kdrun.generation.endpoint import read_key
from kdrun.runs.directory import RunDirectory, write_json, write_text
from kdrun.runs.progress import progress
from kdrun.runs.records import read_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a judge config asks, and which of it is answered already, by request hash."""

    endpoint: Endpoint
    sets: list[JudgedSet]
    against: dict[str, Path]  # by suite; empty without a folder to compare with
    hashes: dict[Question, str]
    cached: dict[str, Answer]
    pending: dict[str, str]  # hash -> prompt
    estimate: Estimate


def judge(config: JudgeConfig, directory: Path, *, overrides: Sequence[str]) -> float:
    """Judge in `directory`, and beside each evaluation. Returns the mean quality, else win rate, else diversity of the
    first evaluation; NaN when nothing could be read."""
    plan = make_plan(config)
    if plan.pending and not config.yes:
        raise UserError(f"yes=false: {plan.estimate}; type yes=true to send them")
    run = RunDirectory.start(
        directory, command="judge", config=config.model_dump(mode="json"), overrides=overrides,
        extra={"name": config.name},
    )  # fmt: skip
    with run.recorded():
        cache, new = AnswerCache(Path(config.judge.cache)), {}
        with progress("judge", len(plan.pending)) as advance:

            def keep(request: str, answer: Answer) -> None:
                cache.put(request, answer)
                new[request] = answer
                advance()

            def failed(count: int) -> None:
                advance.show(f"{count} failed")
                advance()

            errors = ask_all(plan.endpoint, plan.pending, keep=keep, failed=failed)
        answers = plan.cached | new
        if not answers:
            raise UserError(
                f"judge.base_url={config.judge.base_url}: none of {len(errors)} requests was answered; "
                f"the last failed with: {list(errors.values())[-1]}"
            )
        _write_judgements(run.path, plan, answers, new, errors)
        summaries = {judged.folder: _write_verdicts(judged, config, plan, answers, run.path) for judged in plan.sets}
        totals = _totals(config, plan, new, errors)
        judged_by_folder = {relative(folder): summary for folder, summary in summaries.items()}
        write_json(run.path / "summary.json", totals | {"judged": judged_by_folder})
        _print(summaries, plan, totals, answers, errors)
        print(relative(run.path))
    first = next(iter(summaries.values()))
    values = [first[name] for name in ("quality", "win_rate", "diversity") if first.get(name) is not None]
    return float(values[0]) if values else float("nan")


def check_judge(config: JudgeConfig) -> None:
    """The key is there, and so are the evaluations, with the texts that are asked for.

    Raises:
        UserError: naming the key.
    """
    make_plan(config)


def confirm(configs: Sequence[JudgeConfig], words: Sequence[str]) -> bool:
    """Whether the requests may be sent: yes=true, or none is left to send. Prints the estimate, and otherwise the line
    to type."""
    plans = [make_plan(config) for config in configs]
    for plan in plans:
        print(plan.estimate)
    if all(config.yes or not plan.pending for config, plan in zip(configs, plans, strict=True)):
        return True
    kept = [word for word in words if not word.startswith("yes=")]
    print(f"Nothing was sent. To send them: kdrun judge {shlex.join([*kept, 'yes=true'])}")
    return False


# -- the plan ----------------------------------------------------------------------------------------------------------


def make_plan(config: JudgeConfig) -> Plan:
    """What is to be asked; nothing is sent.

    Raises:
        UserError: naming the key that does not fit.
    """
    section = config.judge
    endpoint = Endpoint(
        base_url=section.base_url, model=section.model, key=read_key(section.key_env, key="judge.key_env"),
        max_tokens=section.max_tokens, timeout_s=section.timeout_s, retries=section.retries,
        concurrency=section.concurrency,
    )  # fmt: skip
    sets, against = _judged_sets(config)
    if not any(judged.questions for judged in sets):
        raise UserError("scores=[]: nothing to ask; type scores=quality, or against=DIR for pairs")
    hashes = {question: endpoint.request_hash(question.prompt) for judged in sets for question in judged.questions}
    requests = {request: question.prompt for question, request in hashes.items()}
    cache = AnswerCache(Path(section.cache))
    cached = {request: answer for request in requests if (answer := cache.get(request)) is not None}
    pending = {request: prompt for request, prompt in requests.items() if request not in cached}
    expected = estimate(
        pending.values(), num_cached=len(cached), max_tokens=section.max_tokens,
        input_price=section.input_price, output_price=section.output_price,
    )  # fmt: skip
    return Plan(endpoint, sets, against, hashes, cached, pending, expected)


def _judged_sets(config: JudgeConfig) -> tuple[list[JudgedSet], dict[str, Path]]:
    scores = config.scores if config.scores is not None else ("quality",) if config.against is None else ()
    found = [
        item
        for folder in config.runs
        for run in _cells(Path(folder))
        for item in evaluation_folders(run, name=config.evaluation, key="runs").items()
    ]
    against: dict[str, Path] = {}
    if config.against not in (None, REFERENCES):
        against = evaluation_folders(Path(str(config.against)), name=config.evaluation, key="against")
    by_suite: dict[str, list[Path]] = defaultdict(list)
    for suite, folder in found:
        if folder.resolve() in {other.resolve() for other in (*by_suite[suite], *against.values())}:
            raise UserError(f"runs: {folder} is judged already, by another of runs= or as against=; name it once")
        if against and suite not in against:
            raise UserError(f"against={config.against}: has no suite {suite or 'of one set'}, which {folder} is")
        by_suite[suite].append(folder)
    sets = []
    for suite, folders in by_suite.items():
        others = [against[suite]] if against else []
        examples = {folder: read_examples(folder) for folder in [*folders, *others]}
        check_same_prompts(examples)
        indices = choose(len(examples[folders[0]]), config.judge.num_examples, seed=config.seed)
        other: tuple[Path, Sequence[Example]] | str | None = config.against
        if against:
            other = against[suite], examples[against[suite]]
        sets += [
            judged_set(folder, suite, examples[folder], indices, decoding=config.decoding, scores=scores, against=other)
            for folder in folders
        ]
    return sets, against


def _cells(folder: Path) -> list[Path]:
    """The runs of a sweep directory; any other folder stands for itself."""
    cells = [path.parent for path in folder.glob("*/run.json") if path.parent.name.isdigit()]
    if (folder / "run.json").exists() or not cells:
        return [folder]
    return sorted(cells, key=lambda cell: int(cell.name))


# -- what is written and printed ---------------------------------------------------------------------------------------


def _write_judgements(
    folder: Path, plan: Plan, answers: dict[str, Answer], new: dict[str, Answer], errors: dict[str, str]
) -> None:
    """judgements.jsonl: every question with the raw answer and what was read in it."""
    lines = []
    for judged in plan.sets:
        for question in judged.questions:
            request = plan.hashes[question]
            answer = answers.get(request)
            line: dict[str, Any] = {"folder": relative(judged.folder), "index": question.index, "task": question.task}
            line |= {"order": question.order, "request": request, "cached": request in plan.cached}
            line |= {"answer": answer and answer.text, "finish_reason": answer and answer.finish_reason}
            line |= {"verdict": read_verdict(question, answer.text) if answer else None, "error": errors.get(request)}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(folder / "judgements.jsonl", "".join(lines))


def _write_verdicts(
    judged: JudgedSet, config: JudgeConfig, plan: Plan, answers: dict[str, Answer], run: Path
) -> dict[str, Any]:
    """summary.json, examples.jsonl and protocol.json in EVALUATION/judge/NAME, or NAME-2, ...; returns the summary."""
    asked = {question: plan.hashes[question] for question in judged.questions}
    said = {question: answers[request].text if request in answers else None for question, request in asked.items()}
    summary, rows = tally(judged, said)
    tasks = sorted({question.task for question in judged.questions})
    evaluated = judged.folder / "protocol.json"
    section = config.judge
    protocol = {
        "model": section.model,
        "answered_as": sorted({str(answers[request].model) for request in asked.values() if request in answers}),
        "base_url": section.base_url,
        "temperature": 0,
        "max_tokens": section.max_tokens,
        "prompts": {task: {"text": PROMPTS[task], "sha256": prompt_hash(task)} for task in tasks},
        "decoding": config.decoding,
        "against": relative(plan.against[judged.suite]) if plan.against else config.against,
        "num_examples": len(judged.indices),
        "seed": config.seed,
        "fingerprint": read_json(evaluated, key=str(evaluated)).get("fingerprint") if evaluated.exists() else None,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "run": relative(run),
    }
    folder = _fresh_folder(judged.folder / "judge", label_of(config))
    write_text(folder / "examples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "protocol.json", protocol)
    write_json(folder / "summary.json", summary)
    return summary


def label_of(config: JudgeConfig) -> str:
    """What the scores are called: name=, or while that is `judge` the model, lest two judges' scores pass for one's."""
    model = re.sub(r"[^A-Za-z0-9]+", "-", config.judge.model).strip("-")
    return model if config.name == "judge" and model else config.name


def _fresh_folder(parent: Path, name: str) -> Path:
    """A new folder NAME, or NAME-2, ...; made at once, so that two processes never take the same."""
    parent.mkdir(exist_ok=True)
    for number in range(1, 10_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"name={name}: 10,000 folders of this name in {parent}; choose another")


def _totals(config: JudgeConfig, plan: Plan, new: dict[str, Answer], errors: dict[str, str]) -> dict[str, Any]:
    """Requests sent, answered from the cache and failed; tokens and cost as the endpoint counted them, if it did."""
    counts = [(answer.tokens_in, answer.tokens_out) for answer in new.values()]
    totals: dict[str, Any] = {"sent": len(plan.pending), "cached": len(plan.cached), "failed": len(errors)}
    totals |= {"tokens_in": sum(one or 0 for one, _ in counts), "tokens_out": sum(two or 0 for _, two in counts)}
    known = all(one is not None and two is not None for one, two in counts)
    spent = cost(totals["tokens_in"], totals["tokens_out"], config.judge.input_price, config.judge.output_price)
    return totals | {"cost": spent if known else None}


def _print(
    summaries: dict[Path, dict[str, Any]],
    plan: Plan,
    totals: dict[str, Any],
    answers: dict[str, Answer],
    errors: dict[str, str],
) -> None:
    for folder, summary in summaries.items():
        print(relative(folder))
        for task, value in (("quality", "quality"), ("diversity", "diversity"), ("pairwise", "win_rate")):
            if f"{task}_judged" not in summary:
                continue
            mean = "-" if summary[value] is None else f"{summary[value]:.3f}"
            line = f"  {value} {mean}: {summary[f'{task}_judged']} of {summary['num_examples']} judged"
            if task == "pairwise":
                line += " ({wins} won, {losses} lost, {ties} tied, {inconsistent} inconsistent)".format(**summary)
            print(f"{line}, {summary[f'{task}_parse_failures']} unreadable, {summary[f'{task}_errors']} failed")
        beside = f", against {summary['words_against']:.1f}" if "words_against" in summary else ""
        print(f"  words {summary['words']:.1f}{beside}")
    spent = "" if totals["cost"] is None else f", cost {totals['cost']:.4g}"
    print("{sent} requests sent, {cached} from the cache, {failed} failed".format(**totals) + spent)
    if errors:
        reason, count = Counter(errors.values()).most_common(1)[0]
        log.warning("%d failed requests, %d of them with: %s; the same words ask only these again",
                    len(errors), count, reason)  # fmt: skip
    cut = [
        request for request in plan.hashes.values() if request in answers and answers[request].finish_reason == "length"
    ]
    if cut:
        log.warning("%d answers were cut off; raise judge.max_tokens if they were unreadable", len(set(cut)))
