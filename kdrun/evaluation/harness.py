"""Tasks of lm-evaluation-harness (Winogrande, OpenBookQA, BoolQ, ARC, or YAML tasks of one's own), an optional extra.

The library's inner `evaluate` is called, not its `simple_evaluate`: that one seeds every random generator, runs git,
and collects facts of the machine. Task files of one's own are data and stay data: what would make the library run code
from them is refused, and their templates are rendered in Jinja's sandbox.
"""

import contextlib
import copy
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import random
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdrun.errors import UserError

# The tasks of the papers by the folder of the library that holds them: to index all of its 14,000 files takes 7 s.
FOLDERS = {
    "winogrande": "winogrande",
    "openbookqa": "openbookqa",
    "boolq": "super_glue/boolq",
    "arc_easy": "arc",
    "arc_challenge": "arc",
}
SHORTHANDS = {"arc": ("arc_easy", "arc_challenge")}
SEED = 1234  # the library's own default for few-shot examples; here for what a task samples, too

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarnessResult:
    """summary: harness/TASK/METRIC in the library's own scale (accuracy in [0, 1]), and METRIC_stderr beside it.

    examples: for each task a row an example with its document, target, the model's responses and every metric.
    protocol: what decides the numbers.
    """

    summary: dict[str, float]
    examples: dict[str, list[dict[str, Any]]]
    protocol: dict[str, Any]


def check_harness(tasks: Sequence[str], include_path: str | None = None) -> None:
    """Raise UserError unless the library is there, every task is known and the local task files are sound.

    Imports nothing of the library. Whether the hub has the data of its own tasks is not looked at.
    """
    if not tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"eval.harness=[{','.join(tasks)}]: needs lm-evaluation-harness; type pip install 'kdrun[harness]', or "
            "eval.harness=[]"
        )
    local = _local_tasks(include_path)
    foreign = {name for name in _expanded(tasks) if name not in local and name not in FOLDERS}
    library = _library_names() if foreign else set()
    for name in sorted(foreign - library):
        near = difflib.get_close_matches(name, sorted({*library, *local, *SHORTHANDS}), n=3)
        raise UserError(
            f"eval.harness=[{name}]: no task of lm-evaluation-harness, nor of eval.harness_path="
            f"{include_path or 'null'}; type " + (" or ".join(near) or f"one such as {', '.join(FOLDERS)}")
        )


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    batch_size: int,
    include_path: str | None = None,
    limit: int | None = None,
    device: str | None = None,
) -> HarnessResult:
    """Accuracy and whatever else the tasks define, for a model in memory; every example's scores beside the means.

    A standard error is that of a mean over examples, sd / sqrt(n); metrics that are no mean have none (no bootstrap).
    `limit`: only the first examples of each task. The model comes back as it was: device aside, its mode, the
    tokenizer, the random generators and the logging are left alone.

    Raises UserError as `check_harness`, and when the data of a task cannot be had from the hub.
    """
    check_harness(tasks, include_path)
    training = model.training
    if device is not None:
        model.to(device)
    with _contained() as truncations:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        loaded = _load_tasks(tasks, include_path)
        # A copy: a tokenizer without a padding token is given one.
        student = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, backend="causal")
        quiet = not sys.stderr.isatty()
        for request in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(student, request, functools.partial(getattr(student, request), disable_tqdm=quiet))
        try:
            results: Any = evaluate(student, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
        finally:
            model.train(training)
    examples = {task: [_row(sample) for sample in samples] for task, samples in results["samples"].items()}
    if truncations.count:
        log.warning("eval.harness: %d requests were longer than the model's context and cut", truncations.count)
    protocol = {
        "library": f"lm-eval {importlib.metadata.version('lm_eval')}",
        "limit": limit,
        "dtype": str(model.dtype).removeprefix("torch."),
        "truncated": truncations.count,
        "tasks": {task: _task_protocol(task, results) for task in examples},
    }
    return HarnessResult(_summary(results["results"], examples), examples, protocol)


def fetch_harness(tasks: Sequence[str], include_path: str | None = None) -> None:
    """Have the data of the library's own tasks in the hub's cache, lest a long evaluation fail for them at its end.

    Raises UserError as `run_harness`. Does nothing when every task is a local one.
    """
    check_harness(tasks, include_path)
    if not set(_expanded(tasks)) <= set(_local_tasks(include_path)):
        with _contained():
            _load_tasks(tasks, include_path)


def _load_tasks(tasks: Sequence[str], include_path: str | None) -> dict[str, Any]:
    """The library's own task objects with their data. Renders templates: only within `_contained`."""
    import datasets
    from lm_eval.api.registry import METRIC_REGISTRY
    from lm_eval.tasks import TaskManager

    local = _local_tasks(include_path)
    for name, value in (pair for config in local.values() for pair in _pairs(config)):
        if name == "metric" and value not in METRIC_REGISTRY:
            raise UserError(
                f"eval.harness_path={include_path}: metric {value} is not one of lm-evaluation-harness, which would "
                "fetch code for it; use acc, acc_norm, exact_match or another of its own"
            )
    names = _expanded(tasks)
    foreign = [name for name in (*names, *_members(local)) if name not in local]
    root = _library_folder()
    paths = [root / folder for folder in sorted({FOLDERS[name] for name in foreign if name in FOLDERS})]
    every = any(name not in FOLDERS for name in foreign)
    own = [Path(include_path).expanduser()] if include_path else []
    manager = TaskManager(include_path=[*([] if every else paths), *own], include_defaults=every)
    try:
        loaded: Any = manager.load(names)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"eval.harness=[{','.join(tasks)}]: the data cannot be had from the hub ({type(error).__name__}: "
            f"{reason}); leave the task out, or type eval.harness_path=FOLDER with local YAML tasks"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEED)
    return loaded


# -- task files of one's own ------------------------------------------------------------------------------------------


def _local_tasks(folder: str | None) -> dict[str, dict[str, Any]]:
    """What the *.yaml files of a folder define, by the names of tasks, groups and tags; nothing of it is run."""
    if folder is None:
        return {}
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"eval.harness_path={folder}: no such folder; type eval.harness_path=FOLDER with YAML tasks")
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(root.rglob("*.yaml")):
        config = _read_yaml(path, root)
        tags = config.get("tag") or []
        for name in (config.get("group", config.get("task")), *([tags] if isinstance(tags, str) else tags)):
            if isinstance(name, str):
                found.setdefault(name, config)
    return found


def _read_yaml(path: Path, root: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file with what it includes below `root`; raises UserError when it would have the library run code."""

    class Loader(yaml.SafeLoader):
        pass

    def refuse(_loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        raise UserError(
            f"{path}:{node.start_mark.line + 1}: !function would run code from eval.harness_path; say it with Jinja "
            "templates and the library's own metrics"
        )

    Loader.add_constructor("!function", refuse)
    if path in seen:
        raise UserError(f"{path}: includes itself")
    try:
        config = yaml.load(path.read_bytes(), Loader=Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(config, dict):
        return {}
    for name, value in _pairs(config):
        if name in ("class", "hf_evaluate") and value:
            raise UserError(f"{path}: {name} would run code that is not lm-evaluation-harness's own; leave it out")
        for file in _files(value) if name == "data_files" else ():
            if "://" not in file and "*" not in file and not Path(file).expanduser().exists():
                raise UserError(
                    f"{path}: data_files names {file}, which is not there (a relative path counts from the working "
                    f"folder, {Path.cwd()}); write it in full"
                )
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        if not (path.parent / include).resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path}: includes {include}, outside of eval.harness_path; copy that file there")
        merged |= _read_yaml(path.parent / include, root, (*seen, path))
    return merged | config


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from _pairs(value)
    elif isinstance(node, list):
        for item in node:
            yield from _pairs(item)


def _files(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return [file for part in parts for file in _files(part)]


def _members(local: Mapping[str, dict[str, Any]]) -> set[str]:
    """Names that the local groups call by."""
    lists = [config["task"] for config in local.values() if isinstance(config.get("task"), list)]
    return {name for members in lists for name in members if isinstance(name, str)} | {
        value for members in lists for key, value in _pairs(members) if key == "task" and isinstance(value, str)
    }


# -- the library ------------------------------------------------------------------------------------------------------


def _expanded(tasks: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for task in tasks for name in SHORTHANDS.get(task, (task,))))


def _library_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _library_names() -> set[str]:
    """Tasks, groups and tags of the library, read off its files as text (0.4 s; the library's own index takes 7 s)."""
    pattern = re.compile(rb"^(?:(?:task|group|tag):|\s*-)[ ]*[\"']?([\w.\-]+)[\"']?\s*$", re.MULTILINE)
    return {name.decode() for path in _library_folder().rglob("*.yaml") for name in pattern.findall(path.read_bytes())}


class _Truncations(logging.Handler):
    """Counts what the library says of requests that it cut: one warning a request would drown the log."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "runcat" in record.getMessage()


@contextlib.contextmanager
def _contained() -> Iterator[_Truncations]:
    """The library's effects on the process undone: environment, random generators, log levels, bars, templates.

    Its Jinja environment can reach any Python object from a template; a sandbox takes its place.
    """
    import numpy as np
    import torch

    environment, states = dict(os.environ), (random.getstate(), np.random.get_state())
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels, propagated = [logger.level for logger in loggers], loggers[0].propagate
    library, truncations = loggers[0], _Truncations(logging.WARNING)
    library.addHandler(truncations)
    library.propagate = False
    for logger, level in zip(loggers, (logging.WARNING, logging.ERROR), strict=True):
        logger.setLevel(level)
    try:
        import jinja2.sandbox
        import lm_eval.api.task as task_module
        from lm_eval import utils

        sandbox = jinja2.sandbox.SandboxedEnvironment(
            loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        sandbox.filters |= utils.env.filters
        bar = functools.partial(task_module.tqdm, disable=not sys.stderr.isatty())
        with _replaced(utils, "env", sandbox), _replaced(task_module, "tqdm", bar), torch.random.fork_rng():
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield truncations
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        library.removeHandler(truncations)
        library.propagate = propagated
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# -- results ----------------------------------------------------------------------------------------------------------


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """One example as plain JSON values; a filter is named only where there is one."""
    from lm_eval.utils import handle_non_serializable

    row = {"index": sample["doc_id"], "doc": sample["doc"], "target": sample["target"]}
    row |= {"responses": sample["filtered_resps"], "doc_sha256": sample["doc_hash"]}
    row |= {"filter": sample["filter"]} if sample["filter"] != "none" else {}
    row |= {name: sample[name] for name in sample["metrics"]}
    plain: dict[str, Any] = json.loads(json.dumps(row, default=handle_non_serializable))
    return plain | {name: float(plain[name]) for name in sample["metrics"] if isinstance(plain[name], int | float)}


def _summary(results: Mapping[str, Any], examples: Mapping[str, list[dict[str, Any]]]) -> dict[str, float]:
    summary = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, _, part = key.partition(",")
            if not part or metric.endswith("_stderr") or isinstance(value, str):
                continue
            name = f"harness/{task}/{metric}" + (f"_{part}" if part != "none" else "")
            summary[name] = float(value)
            scores = [row.get(metric) for row in examples.get(task, ()) if row.get("filter", "none") == part]
            numbers = [score for score in scores if isinstance(score, float)]
            if len(numbers) == len(scores) > 1 and math.isclose(statistics.fmean(numbers), value, abs_tol=1e-9):
                summary[f"{name}_stderr"] = statistics.stdev(numbers) / math.sqrt(len(numbers))
    return summary


def _task_protocol(task: str, results: Mapping[str, Any]) -> dict[str, Any]:
    config, samples = results["configs"][task], results["samples"][task]
    hashes = "".join(sample["doc_hash"] + sample["target_hash"] for sample in samples)
    return {
        "version": str(results["versions"][task]),
        "num_fewshot": results["n-shot"][task],
        "dataset_path": config.get("dataset_path"),
        "dataset_name": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "num_examples": len({sample["doc_id"] for sample in samples}),
        "num_available": results["n-samples"][task]["original"],
        "fingerprint": hashlib.sha256(hashes.encode()).hexdigest(),
    }
