"""What words, config files and records may ask Hydra for: its own launchers and sweepers, never a program of theirs.

Hydra runs whatever stands behind `_target_`, in a logging config or in a callback; a config file or a run directory
that someone sent could hold one. Everything is looked at when it is composed, before Hydra acts on it: what is refused
raises a UserError that names the key, flag or word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdrun.errors import UserError
from kdrun.secrecy import first_secret, secret_in
from kdrun.untrusted import printable
from kdrun.words import key_of, value_of

TARGETS = re.compile(r"(hydra\._internal\.core_plugins|hydra_plugins|optuna\.(samplers|pruners|distributions))\.[\w.]+")
LOG_CLASSES = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter",
               "colorlog.ColoredFormatter", "kdrun.secrecy.Formatter")  # fmt: skip
LOG_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FOLDER = "${hydra.runtime.output_dir}/"
# Commands for the shell of a cluster's node: a person's own business, so they are typed.
COMMANDS = ("setup", "python", "srun_args")
# What a sweep's record may hold beside the words of its cells.
SWEEP_KEYS = re.compile(r"hydra/(launcher|sweeper)(/sampler)?|hydra\.(sweeper|launcher)\.\w[\w.]*")
WORD = re.compile(r"(~|\+{0,2})[A-Za-z_][\w./@:-]*(=.*)?", re.DOTALL)
FLAGS = ("--config-dir", "-cd", "--config-name", "-cn")


def check_flags(flags: Sequence[str]) -> None:
    """No flag that would run a pickle, or a config that was not looked at."""
    for flag in (word.partition("=")[0] for word in flags if word.startswith("-")):
        if flag.startswith("--experimental"):
            raise UserError(f"{flag}: opens a pickle, which can hold a program; type kdrun train resume=DIR instead")
        if flag in ("--config-path", "-cp"):
            raise UserError(f"{flag}: kdrun has its own; add a folder of yours with --config-dir DIR")


def check_search_path(words: Sequence[str], config_dir: str | None, config_name: str | None) -> None:
    """Configs are looked for in folders only: Hydra would import the package of a pkg:// path."""
    paths: list[Any] = [word.partition("=")[2] for word in words if key_of(word) == "hydra.searchpath"]
    for file in Path(config_dir).glob(f"{config_name}.y*ml") if config_dir and config_name else ():
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        hydra = content.get("hydra") if isinstance(content, dict) else None
        paths += [hydra.get("searchpath")] if isinstance(hydra, dict) else []
    for path in paths:
        if re.search(r"(?!file)\b\w+://|\$\{", str(path)):
            raise UserError(
                f"hydra.searchpath={printable(str(path))}: only folders (file://DIR); type --config-dir DIR"
            )


def check_hydra(node: Mapping[str, Any], words: Sequence[str]) -> None:
    """The composed hydra node, unresolved, names nothing to run but Hydra's own parts.

    Args:
        words: typed; the only place where commands for a cluster's shell may come from.
    """
    for key, value in _leaves(node, "hydra"):
        if key.endswith("._target_") and not (isinstance(value, str) and TARGETS.fullmatch(value)):
            raise UserError(f"{key}={_short(value)}: would be run; only Hydra's own launchers and sweepers can be")
        if key.startswith(("hydra.job_logging.", "hydra.hydra_logging.")):
            _check_logging(key, value)
    if node.get("callbacks"):
        raise UserError(f"hydra.callbacks.{next(iter(node['callbacks']))}: would be run; kdrun takes no callbacks")
    job, sweeper, launcher = (node.get(name) or {} for name in ("job", "sweeper", "launcher"))
    if job.get("env_set"):
        name = next(iter(job["env_set"]))
        raise UserError(f"hydra.job.env_set.{name}: type it before the command ({name}=... kdrun ...), for no record")
    if sweeper.get("custom_search_space"):
        raise UserError("hydra.sweeper.custom_search_space: would be run; write the intervals as words")
    for name in COMMANDS:
        key = f"hydra.launcher.{name}"
        if launcher.get(name) and not any(key_of(word) == key for word in words):
            raise UserError(f"{key}: comes from a file and would be run; type it yourself if it is meant")


def _check_logging(key: str, value: Any) -> None:
    last = key.rpartition(".")[2]
    if last in ("class", "()") and value not in LOG_CLASSES:
        raise UserError(f"{key}={_short(value)}: would be run; a log has {', '.join(LOG_CLASSES)}")
    if last == "filename" and not (str(value).startswith(LOG_FOLDER) and ".." not in str(value)):
        raise UserError(f"{key}={_short(value)}: leaves the run directory; it must begin with {LOG_FOLDER}")
    if isinstance(value, str) and re.match(r"\w+://", value) and value not in LOG_STREAMS:
        raise UserError(f"{key}={_short(value)}: must be {' or '.join(LOG_STREAMS)}")


def _leaves(node: Any, at: str) -> Iterator[tuple[str, Any]]:
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        yield at, node
        return
    for name, child in children:
        yield from _leaves(child, f"{at}.{name}")


def _short(value: Any) -> str:
    return printable(str(value))[:80]


def check_typed(config: Any, typed: Sequence[str]) -> None:
    """Code that a model brings runs only where the person typed it: no file and no record may ask for it."""
    for key, node in (("trust_remote_code", config), ("pair.trust_remote_code", getattr(config, "pair", None))):
        if getattr(node, "trust_remote_code", False) and (value_of(typed, key) or "").lower() != "true":
            raise UserError(
                f"{key}=true: comes from a file or a record; it runs code of the model: type it to allow it"
            )


def check_recorded(words: Sequence[Any], typed: Sequence[str], *, key: str, sweep: bool = False) -> None:
    """Words that a record holds are KEY=VALUE of the task, and read nothing of this machine; those typed again are."""
    again = {key_of(word) for word in typed}
    for word in words:
        said = f"{key}: its record holds {_short(word)}"
        if not (isinstance(word, str) and WORD.fullmatch(word)):
            raise UserError(f"{said}, which is no KEY=VALUE; start a new run")
        name = key_of(word)
        if name in again:
            continue
        if name.startswith("hydra") and not (sweep and SWEEP_KEYS.fullmatch(name) and "_target_" not in name):
            raise UserError(f"{said}, which no record of kdrun does; start a new run")
        if name.startswith("hydra.launcher.") and name.split(".")[2] in (*COMMANDS, "submitit_folder"):
            raise UserError(f"{said}, which would be run; type it yourself if it is meant")
        if "${" in word and ":" in word.partition("${")[2]:
            raise UserError(f"{said}, which reads this machine's environment; type {name}=VALUE yourself")


def check_recorded_flags(flags: Sequence[Any], *, key: str) -> None:
    """Flags that a sweep's record holds choose configs, and nothing else."""
    for flag in flags:
        if not isinstance(flag, str) or (flag.startswith("-") and flag.partition("=")[0] not in FLAGS):
            raise UserError(f"{key}: its record holds the flag {_short(flag)}; only {', '.join(FLAGS)} can be there")


def check_secrets(config: Mapping[str, Any], words: Sequence[str] = ()) -> None:
    """No key and no password in what is written to every record; the error does not show it."""
    found = next(((key_of(word), kind) for word in words if (kind := secret_in(word))), None) or first_secret(config)
    if found:
        raise UserError(
            f"{found[0]}: holds {found[1]} (not shown here), and would stand in every record; keys belong in the "
            "environment: WANDB_API_KEY, HF_TOKEN, or the variable that judge.key_env names"
        )
