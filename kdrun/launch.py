"""From words to a run: compose and check every cell first, then let hydra.main run what is known to be good.

hydra.main is entered with an unchanged argv, so Hydra's whole grammar, its flags, launchers and sweepers keep working;
its one fault, error reports of many lines, is met by composing with the public API before it starts.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from kdrun import cli, explain
from kdrun.config import CONFIGS, SHORT_KEYS, EvaluateConfig, Section, TrainConfig
from kdrun.errors import UserError
from kdrun.words import expand_short_key, key_of, quote, read_flags, split_words, value_of

NO_CHECK = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")


@dataclass(frozen=True)
class Cell:
    """One job of a command, composed and validated."""

    config: Section
    composed: DictConfig  # with the hydra node
    words: list[str]


def answer(action: Callable[[], Any], typed: Sequence[str] = ()) -> Any:
    """Run an action; a UserError becomes one line on standard error and exit code 2.

    Args:
        typed: the words as the person typed them, so that the line says mu where mu was typed for loss.mu.
    """
    try:
        return action()
    except UserError as error:
        message = " ".join(str(error).split())
    for key in {key_of(word) for word in typed} & SHORT_KEYS:
        message = re.sub(rf"\bloss\.{key}\b", key, message)
    print(f"kdrun: {message}", file=sys.stderr)
    sys.exit(2)


def launch(command: str, words: Sequence[str], conf: Path) -> None:
    """Check every cell of a command, then run it through hydra.main. Exits with 2 on a user's mistake."""
    flags, typed = split_words(words)
    if any(flag in NO_CHECK for flag in flags):
        return run_hydra(command, flags, typed, conf)
    options = read_flags(flags)
    overrides = answer(lambda: complete(command, [expand_short_key(word) for word in typed]))
    cells = answer(lambda: compose_cells(command, overrides, options, conf), typed)
    if not options.cfg:
        answer(lambda: check(command, cells, overrides, options.multirun))
        if command == "train":
            answer(lambda: make_missing_teachers(cells, options.config_dir, conf))
        if options.multirun:
            overrides = pin_sweep_directory(overrides, cells[0].composed)
    try:
        answer(lambda: run_hydra(command, flags, overrides, conf))
    except KeyboardInterrupt:
        print("kdrun: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:  # a sweep with a failed cell ends with its table, too
        if options.multirun and not options.cfg:
            print_sweep(Path(str(OverridesParser.create().parse_override(overrides[-1]).value())))
    return None


def print_sweep(folder: Path) -> None:
    """The table of a sweep's cells, when any has begun."""
    from kdrun.commands.compare import compare

    if any(folder.glob("*/run.json")):
        compare([folder])
        print(folder)


def show(command: str, words: Sequence[str]) -> None:
    """Print the composed, checked config of a command as YAML."""
    flags, typed = split_words(words)
    overrides = [expand_short_key(word) for word in typed]
    cells = answer(lambda: compose_cells(command, overrides, read_flags(flags), cli.CONF), typed)
    print(OmegaConf.to_yaml(OmegaConf.create(cells[0].config.model_dump(mode="json"))), end="")


# -- composing --------------------------------------------------------------------------------------------------------


def complete(command: str, overrides: list[str]) -> list[str]:
    """Add what follows from resume=DIR (the words that the run was started with) and run=DIR (where to write)."""
    from kdrun.runs.directory import RunDirectory, evaluation_directory

    if command == "train" and (folder := value_of(overrides, "resume")):
        run = RunDirectory.open(folder, key="resume")
        here = f"hydra.run.dir={quote(str(run.path))}"
        return [*run.record["overrides"], *overrides, here]
    if command == "evaluate" and (folder := value_of(overrides, "run")) and not value_of(overrides, "hydra.run.dir"):
        run = RunDirectory.open(folder, key="run")
        name = value_of(overrides, "name") or value_of(overrides, "eval") or "quick"
        return [*overrides, f"hydra.run.dir={quote(str(evaluation_directory(run.path, name)))}"]
    return overrides


def compose_cells(command: str, overrides: list[str], options: argparse.Namespace, conf: Path) -> list[Cell]:
    """Compose and validate every job that Hydra will run.

    Raises:
        UserError: in one line, for anything that Hydra or the schema refuses.
    """
    search = search_words(options.config_dir)
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir {options.config_dir}: no such folder")
    name = options.config_name or command
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        grid = sweep_words(name, overrides, search, command, conf) if options.multirun else [overrides]
        return [compose_cell(command, name, words + search, conf) for words in grid]


def search_words(config_dir: str | None) -> list[str]:
    """--config-dir as an override, for the compose API."""
    return [f"hydra.searchpath=[{quote('file://' + str(Path(config_dir).absolute()))}]"] if config_dir else []


def compose_cell(command: str, name: str, words: list[str], conf: Path) -> Cell:
    """One job: composed, resolved, validated."""
    composed = compose_or_explain(command, name, words, conf)
    with open_dict(composed.hydra):  # what hydra.main will fill in; a config may refer to it
        composed.hydra.runtime.output_dir = "."
        composed.hydra.job.num = 0
        composed.hydra.job.id = "0"
    HydraConfig.instance().set_config(composed)
    return Cell(validate(command, composed, words), composed, words)


def compose_or_explain(command: str, name: str, words: list[str], conf: Path) -> DictConfig:
    """Hydra's compose, its errors in one line."""
    try:
        return compose(name, overrides=words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_hydra(error, command, words, conf)) from error


def validate(command: str, composed: DictConfig, words: Sequence[str]) -> Section:
    """The typed config of a composed job.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    config = composed.copy()
    with open_dict(config):
        config.pop("hydra", None)
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain_hydra(error, command, words, cli.CONF)) from error
    assert isinstance(plain, dict)
    plain.pop("experiment", None)
    model = CONFIGS[command]
    if "train" not in model.model_fields:  # a pair brings the training that goes with it
        plain.pop("train", None)
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise UserError(explain.explain_validation(error, defaults_of(composed, words), model)) from error


def defaults_of(composed: DictConfig, words: Sequence[str]) -> dict[str, Any]:
    """The config without the typed values (but with the typed groups), to show an allowed value beside a bad one."""
    groups = [word for word in words if "." not in key_of(word) and key_of(word) in composed.hydra.runtime.choices]
    try:
        config = compose(composed.hydra.job.config_name, overrides=groups)
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException):
        return {}
    return plain if isinstance(plain, dict) else {}  # type: ignore[return-value]


def sweep_words(name: str, overrides: list[str], search: list[str], command: str, conf: Path) -> list[list[str]]:
    """The overrides of every cell: first each value of each axis once (errors come soon), then the whole grid."""
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(overrides)
    except HydraException as error:
        raise UserError(explain_hydra(error, command, overrides, conf)) from error
    fixed = [word.input_line or "" for word in parsed if not word.is_sweep_override()]
    hydra = compose_or_explain(command, name, fixed + search, conf).hydra
    if not str(hydra.sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return [fixed]  # another sweeper chooses the values: only the rest can be checked
    typed = {override.get_key_element() for override in parsed}
    configured = [expand_short_key(f"{key}={value}") for key, value in (hydra.sweeper.get("params") or {}).items()]
    axes = [axis for axis in parsed if axis.is_sweep_override()]
    axes += [axis for axis in parser.parse_overrides(configured) if axis.get_key_element() not in typed]
    values = [axis_values(axis) for axis in axes]
    singles = [
        fixed + [words[0] for words in values[:i]] + [word] + [words[0] for words in values[i + 1 :]]
        for i, axis in enumerate(values)
        for word in axis
    ]
    grid = [fixed + list(words) for words in itertools.product(*values)]
    seen: dict[tuple[str, ...], list[str]] = {tuple(words): words for words in [*singles, *grid]}
    return list(seen.values())


def axis_values(axis: Override) -> list[str]:
    """The words of one swept key: loss.mu=0.3, loss.mu=0.5, ..."""
    if axis.is_sweep_override() and not axis.is_discrete_sweep():
        raise UserError(
            f"{axis.input_line}: the basic sweeper takes lists and range(...), not intervals; "
            "write the values, or choose a sweeper that searches (hydra/sweeper=...)"
        )
    if not axis.is_sweep_override():
        return [axis.input_line or ""]
    return [f"{axis.get_key_element()}={value}" for value in axis.sweep_string_iterator()]


def explain_hydra(error: Exception, command: str, words: Sequence[str], conf: Path) -> str:
    """Hydra's and OmegaConf's errors in one line."""
    text = str(error)
    if match := re.search(r"Could not find '([\w/]+)/([^']+)'", text):
        group, option = match.groups()
        options = re.findall(r"^\t([^_\s]\S*)$", text, flags=re.MULTILINE) or explain.group_options(conf, group)
        return f"no {group}={option}{explain.suggest(option, options)} (there are {', '.join(options)})"
    if match := re.search(r"Could not override '([^']+)'", text):
        if "No match in the defaults list" in text:
            near = explain.suggest(match[1], explain.known_keys(command, conf))
            return f"{match[1]}: not a config group of {command}{near}"
        choices = {group: value_of(words, group) or "" for group in explain.UNIONS}
        choices["loss"] = choices["loss"] or "akl"
        return explain.unknown_key(match[1], command, conf, choices)
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values; use `kdrun sweep` for one run each, or [a,b] for a list"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}= is required: type {error.full_key}=VALUE"
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return f"{error.full_key}: {text.splitlines()[0]}"
    text = re.sub(r"\s*See https?://\S+ for details", "", text)
    return f"{' '.join(text.split())}; overrides are typed KEY=VALUE"


# -- checks before anything heavy -------------------------------------------------------------------------------------


def check(command: str, cells: list[Cell], overrides: list[str], multirun: bool) -> None:
    """What a config alone cannot say: files exist and parse, the run directory is free, a resumed run is the same."""
    from kdrun.commands.preconditions import check_evaluate, check_resume, check_train
    from kdrun.runs.directory import RunDirectory

    seen: set[str] = set()
    for cell in cells:
        config = cell.config
        key = repr(getattr(config, "data", None)) + repr(getattr(config, "pair", None))
        if key in seen:  # one look at each file, however many cells a sweep has
            continue
        seen.add(key)
        if isinstance(config, TrainConfig):
            check_train(config)
        elif isinstance(config, EvaluateConfig):
            check_evaluate(config)
    config = cells[0].config
    if isinstance(config, TrainConfig) and config.resume is not None:
        if multirun:
            raise UserError(
                "resume=: continues one run; resume the cells of a sweep one by one with kdrun train resume=DIR/N"
            )
        run = RunDirectory.open(config.resume, key="resume")
        typed = {key_of(word) for word in overrides[len(run.record["overrides"]) :]}
        check_resume(config, run, sorted(typed - {"resume", "hydra.run.dir"}))
    elif multirun and (folder := value_of(overrides, "hydra.sweep.dir")) and any(Path(folder).glob("*/run.json")):
        raise UserError(f"hydra.sweep.dir={folder}: holds a sweep already; choose another folder")
    elif not multirun and (folder := value_of(overrides, "hydra.run.dir")) and (Path(folder) / "run.json").exists():
        raise UserError(
            f"hydra.run.dir={folder}: holds a run already; choose another folder, or go on with resume={folder}"
        )


def make_missing_teachers(cells: list[Cell], config_dir: str | None, conf: Path) -> None:
    """Run the fine-tuning of a scratch pair's teacher when its folder is not there yet, once for all cells."""
    from kdrun.commands.preconditions import missing_teacher
    from kdrun.runs.directory import claim

    for cell in {repr(cell.config.pair) + repr(cell.config.data): cell for cell in cells}.values():  # type: ignore[attr-defined]
        folder = missing_teacher(cell.config)  # type: ignore[arg-type]
        if folder is None:
            continue
        with claim(folder):  # two processes that want the same teacher train it once
            if missing_teacher(cell.config) is None:  # type: ignore[arg-type]
                continue
            words = ["--config-dir", config_dir] if config_dir else []
            words += teacher_words(cell, folder, conf, search_words(config_dir))
            print(f"No teacher at {folder} yet: fine-tuning one, once. The same by hand:", file=sys.stderr)
            print("  kdrun train " + " ".join(words), file=sys.stderr)
            launch("train", words, conf)


def teacher_words(cell: Cell, folder: Path, conf: Path, search: list[str]) -> list[str]:
    """The words that fine-tune the teacher which a cell wants: its pair and its data, train=tiny_teacher."""
    if (folder / "run.json").exists():
        return [f"resume={folder}"]
    choices = cell.composed.hydra.runtime.choices
    groups = [f"pair={choices.pair}", f"data={choices.data}"]
    words = ["role=teacher", "loss=sft", "train=tiny_teacher", *groups, "name=teacher"]
    words.append(f"track.mode={cell.composed.track.mode}")
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        plain = compose("train", overrides=[*search, *(word for word in groups if word != "data=jsonl")])
    for group in ("pair", "data"):
        wanted = cast("dict[str, Any]", OmegaConf.to_container(cell.composed[group], resolve=True))
        for key, value in wanted.items():
            if key not in ("teacher", "student") and value != OmegaConf.select(plain, f"{group}.{key}"):
                words.append(f"{group}.{key}={quote(value)}")
    words.append(f"pair.teacher={quote(str(folder))}")
    return [*words, f"hydra.run.dir={quote(str(folder))}"]


def pin_sweep_directory(overrides: list[str], composed: DictConfig) -> list[str]:
    """Fix hydra.sweep.dir now (it holds the time), so that the summary at the end knows where to look; put it last."""
    given = [word for word in overrides if key_of(word) == "hydra.sweep.dir"]
    folder = value_of(given, "hydra.sweep.dir") or composed.hydra.sweep.dir
    return [*(word for word in overrides if word not in given), f"hydra.sweep.dir={quote(folder)}"]


# -- running ----------------------------------------------------------------------------------------------------------


def run_hydra(command: str, flags: Sequence[str], overrides: Sequence[str], conf: Path) -> None:
    """Enter hydra.main as if these words had been typed; crashes keep their traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    GlobalHydra.instance().clear()
    before = sys.argv
    sys.argv = ["kdrun", *flags, *overrides]
    try:
        hydra_main(version_base="1.3", config_path=str(conf), config_name=command)(run_job)()
    finally:
        sys.argv = before


def run_job(composed: DictConfig) -> float | None:
    """One job inside Hydra: validate again, dispatch, and let go of everything when it fails."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exit, so that run.json says interrupted
    hydra = HydraConfig.get()
    command = str(hydra.job.name if hydra.job.name in CONFIGS else hydra.job.config_name)
    words = list(hydra.overrides.task)
    config = validate(command, composed, words)
    directory = Path(hydra.runtime.output_dir)
    logging.getLogger(__name__).info("%s: %s", directory, " ".join(words))
    group = Path(hydra.sweep.dir).name if hydra.mode is not None and hydra.mode.name == "MULTIRUN" else None
    if group is None:
        return answer(lambda: dispatch(config, directory, words, None))  # a user's mistake leaves here, in one line
    try:
        return dispatch(config, directory, words, group)
    except Exception as error:
        # Hydra keeps a failed job's exception, whose frames keep the model: later cells would run out of memory.
        if error.__traceback__ is not None:
            traceback.print_exc()
            traceback.clear_frames(error.__traceback__)
        raise


def dispatch(config: Section, directory: Path, words: list[str], group: str | None) -> float:
    """The command that a config belongs to."""
    if isinstance(config, TrainConfig):
        from kdrun.commands.train import train

        return train(config, directory, overrides=words, group=group)
    from kdrun.commands.evaluate import evaluate

    assert isinstance(config, EvaluateConfig)
    return evaluate(config, directory, overrides=words)
