"""From words to typed configs: every cell of a command composed and validated with Hydra's public API.

hydra.main would report errors in many lines; here each is one line that names the key.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from kdrun import cli, explain
from kdrun.allowed import check_hydra, check_recorded, check_search_path, check_secrets
from kdrun.config import CONFIGS, Section
from kdrun.errors import UserError
from kdrun.untrusted import refuse_links_out
from kdrun.words import expand_short_key, key_of, quote, shorten, value_of

# Beside its own, Hydra lets through what int(), open() and recursion raise for 10,000 digits, letters or brackets.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError, RecursionError, yaml.YAMLError)


@dataclass(frozen=True)
class Cell:
    """One job of a command, composed and validated."""

    config: Section
    composed: DictConfig  # with the hydra node
    words: list[str]
    swept: list[str] = field(default_factory=list)  # those of the words that tell the cells of a sweep apart


def complete(command: str, overrides: list[str]) -> list[str]:
    """Add what follows from resume=DIR (the words that the run was started with) and run=DIR (where to write)."""
    from kdrun.runs.directory import RunDirectory, evaluation_directory

    if command == "train" and (folder := value_of(overrides, "resume")):
        run = RunDirectory.open(folder, key="resume")
        refuse_links_out(run.path, key=f"resume={folder}")
        if "overrides" not in run.record:
            raise UserError(
                f"resume={folder}: its run.json has no overrides, the words that started it; start a new run"
            )
        recorded = run.record["overrides"]
        check_recorded(recorded, overrides, key=f"resume={folder}")
        if value_of(overrides, "launch"):  # the old launch's settings are not the new one's
            recorded = [word for word in recorded if key_of(word).split(".")[0] != "launch"]
        return [*recorded, *overrides, f"hydra.run.dir={quote(str(run.path))}"]
    if command == "evaluate" and (folder := value_of(overrides, "run")) and not value_of(overrides, "hydra.run.dir"):
        run = RunDirectory.open(folder, key="run")
        refuse_links_out(run.path, key=f"run={folder}")
        name = value_of(overrides, "name") or value_of(overrides, "eval") or "quick"
        return [*overrides, f"hydra.run.dir={quote(str(evaluation_directory(run.path, name)))}"]
    return overrides


def compose_cells(command: str, overrides: list[str], options: argparse.Namespace, conf: Path) -> list[Cell]:
    """Compose and validate every job that Hydra will run, in Hydra's order.

    Raises:
        UserError: in one line, for anything that Hydra or the schema refuses.
    """
    search = search_words(options.config_dir)
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir {options.config_dir}: no such folder")
    name = options.config_name or command
    check_search_path(overrides, options.config_dir, options.config_name)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        if not options.multirun:
            return [compose_cell(command, name, overrides + search, conf)]
        fixed, values = sweep_words(name, overrides, search, command, conf)
        grid = list(itertools.product(*values))
        # First each value of each axis once, so that errors come soon.
        first = [tuple(words[0] for words in values)]
        singles = [(*first[0][:i], word, *first[0][i + 1 :]) for i, words in enumerate(values) for word in words]
        cells = {
            swept: replace(compose_cell(command, name, [*fixed, *swept, *search], conf), swept=list(swept))
            for swept in dict.fromkeys([*first, *singles, *grid])
        }
        return [cells[swept] for swept in grid]


def search_words(config_dir: str | None) -> list[str]:
    """--config-dir as an override, for the compose API."""
    return [f"hydra.searchpath=[{quote('file://' + str(Path(config_dir).absolute()))}]"] if config_dir else []


def compose_cell(command: str, name: str, words: list[str], conf: Path) -> Cell:
    """One job: composed, resolved, validated."""
    composed = compose_or_explain(command, name, words, conf)
    check_hydra(cast("dict[str, Any]", OmegaConf.to_container(composed.hydra, resolve=False)), words)
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
    except COMPOSE_ERRORS as error:
        raise UserError(explain_hydra(error, command, words, conf, culprit=_culprit(error, name, words))) from error


def _culprit(error: Exception, name: str, words: Sequence[str]) -> str:
    """The word that fails in the same way by itself, for Hydra does not always name it; "" when none does."""
    for word in words:
        try:
            compose(name, overrides=[word])
        except COMPOSE_ERRORS as alone:
            if type(alone) is type(error) and str(alone)[:30] == str(error)[:30]:
                return word
    return ""


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
        checked = model.model_validate(plain)
        check_secrets(checked.model_dump(mode="json"))
        return checked
    except ValidationError as error:
        typed = [key_of(word) for word in words]
        line = explain.explain_validation(error, defaults_of(composed, words), model, typed=typed)
        raise UserError(line) from error


def defaults_of(composed: DictConfig, words: Sequence[str]) -> dict[str, Any]:
    """The config without the typed values (but with the typed groups), to show an allowed value beside a bad one."""
    if "hydra" not in composed:  # inside a job, which was checked before: a file changed since
        return {}
    groups = [word for word in words if "." not in key_of(word) and key_of(word) in composed.hydra.runtime.choices]
    try:
        config = compose(composed.hydra.job.config_name, overrides=groups)
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException):
        return {}
    return plain if isinstance(plain, dict) else {}  # type: ignore[return-value]


def sweep_words(
    name: str, overrides: list[str], search: list[str], command: str, conf: Path
) -> tuple[list[str], list[list[str]]]:
    """The overrides that all cells share, and the words of each axis; the last axis turns fastest, as Hydra numbers."""
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(overrides)
    except HydraException as error:
        raise UserError(explain_hydra(error, command, overrides, conf)) from error
    fixed = [word.input_line or "" for word in parsed if not word.is_sweep_override()]
    hydra = compose_or_explain(command, name, fixed + search, conf).hydra
    if not is_grid(hydra):
        return fixed, []  # another sweeper chooses the values: only the rest can be checked
    configured = [expand_short_key(f"{key}={value}") for key, value in (hydra.sweeper.get("params") or {}).items()]
    axes = {axis.get_key_element(): axis for axis in parser.parse_overrides(configured)}
    for word in parsed:
        if word.is_sweep_override() or word.get_key_element() in axes:
            axes[word.get_key_element()] = word
    return fixed, [axis_values(axis) for axis in axes.values()]


def is_grid(hydra: DictConfig) -> bool:
    """Whether the sweeper runs every combination, so that the cells are known beforehand."""
    return str(hydra.sweeper.get("_target_", "")).endswith("BasicSweeper")


def axis_values(axis: Override) -> list[str]:
    """The words of one swept key: loss.mu=0.3, loss.mu=0.5, ..."""
    if axis.is_sweep_override() and not axis.is_discrete_sweep():
        raise UserError(
            f"{axis.input_line}: the basic sweeper takes lists and range(...), not intervals; "
            "write the values, or choose a sweeper that searches (hydra/sweeper=...)"
        )
    if not axis.is_sweep_override():
        return [axis.input_line or ""]
    words = [f"{axis.get_key_element()}={value}" for value in axis.sweep_string_iterator()]
    if not words:
        raise UserError(f"{axis.input_line}: gives no value; write at least one")
    if len(set(words)) < len(words):
        raise UserError(f"{axis.input_line}: a value stands there twice, and would be run twice; write it once")
    return words


def explain_hydra(error: Exception, command: str, words: Sequence[str], conf: Path, *, culprit: str = "") -> str:
    """Hydra's and OmegaConf's errors in one line."""
    text = str(error)
    if match := re.search(r"Could not find '([\w/]+)/([^']+)'", text):
        group, option = match.groups()
        if group.startswith("experiment/"):  # a folder of experiments is no group of its own
            group, _, option = f"{group}/{option}".partition("/")
            text = ""
        options = re.findall(r"^\t([^_\s]\S*)$", text, flags=re.MULTILINE) or explain.group_options(conf, group)
        extra = "; pip install 'kdrun[sweep]' brings joblib and submitit_slurm" if group == "hydra/launcher" else ""
        return f"no {group}={option}{explain.suggest(option, options)} (there are {', '.join(options)}){extra}"
    if match := re.search(r"Could not override '([^']+)'", text):
        if "No match in the defaults list" in text:
            near = explain.suggest(match[1], explain.known_keys(command, conf))
            return f"{match[1]}: not a config group of {command}{near}"
        defaults = {"loss": "akl", "teacher": "live", "rollout": "data", "adapter": "none", "launch": "local"}
        choices = {group: value_of(words, group) or defaults.get(group, "") for group in explain.UNIONS}
        return explain.unknown_key(match[1], command, conf, choices)
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values; use `kdrun sweep` for one run each, or [a,b] for a list"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}= is required: type {error.full_key}=VALUE"
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return f"{error.full_key}: {text.splitlines()[0]}"
    text = re.sub(r"\s*See https?://\S+ for details|\n\s*full_key: .*", "", text, flags=re.DOTALL)
    text = " ".join(text.split())
    at = "" if not culprit or culprit in text else f"{culprit[:80]}: "
    return f"{at}{shorten(text)}; overrides are typed KEY=VALUE"
