"""From words to a run: compose and check every cell first, then let hydra.main run what is known to be good.

hydra.main is entered with an unchanged argv, so Hydra's whole grammar, its flags, launchers and sweepers keep working;
its one fault, error reports of many lines, is met by composing with the public API before it starts.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdrun import cli
from kdrun.compose import complete, compose_cells, validate
from kdrun.config import CONFIGS, SHORT_KEYS, BenchConfig, EvaluateConfig, Section, TrainConfig
from kdrun.errors import UserError
from kdrun.prepare import check, make_missing_teachers, pin_sweep_directory
from kdrun.words import expand_short_key, key_of, read_flags, split_words

NO_CHECK = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")


def answer(action: Callable[[], Any], typed: Sequence[str] = ()) -> Any:
    """Run an action; a UserError becomes one line on standard error and exit code 2.

    Args:
        typed: the words as the person typed them, so that the line says mu where mu was typed for loss.mu.
    """
    try:
        return action()
    except UserError as error:
        message = " ".join(str(error).split())
    keys = {key_of(word) for word in typed}
    for key in keys & SHORT_KEYS:
        message = re.sub(rf"\bloss\.{key}\b", key, message)
    for key in (key for key in keys if key.startswith("cache.")):
        message = message.replace(f"teacher.{key.removeprefix('cache.')}", key)
    print(f"kdrun: {message}", file=sys.stderr)
    sys.exit(2)


def launch(command: str, words: Sequence[str], conf: Path) -> None:
    """Check every cell of a command, then run it through hydra.main. Exits with 2 on a user's mistake."""
    flags, typed = split_words(words)
    if any(flag in NO_CHECK for flag in flags):
        return run_hydra(command, flags, typed, conf)
    options = read_flags(flags)
    overrides = answer(lambda: complete(command, [expand_short_key(word, command) for word in typed]))
    cells = answer(lambda: compose_cells(command, overrides, options, conf), typed)
    if not options.cfg:
        answer(lambda: check(command, cells, overrides, options.multirun), typed)
        if command == "train":
            answer(
                lambda: make_missing_teachers(
                    cells, options.config_dir, conf, train=lambda words: launch("train", words, conf)
                )
            )
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


def cache(words: Sequence[str], conf: Path) -> None:
    """Make the teacher caches of a training: the words of `kdrun train` (or of a sweep), teacher=cached implied."""
    from kdrun.commands.cache import build_caches

    flags, typed = split_words(words)
    options = read_flags(flags)
    options.multirun = True  # a sweep's words are as good: its cells share their caches
    overrides = [expand_short_key(word) for word in typed]
    if not any(key_of(word) == "teacher" for word in overrides):
        overrides = ["teacher=cached", *overrides]
    cells = answer(lambda: compose_cells("train", overrides, options, conf), typed)
    answer(lambda: check("train", cells, overrides, False), typed)
    answer(
        lambda: make_missing_teachers(cells, options.config_dir, conf, train=lambda words: launch("train", words, conf))
    )
    try:
        answer(lambda: build_caches([cell.config for cell in cells]), typed)
    except KeyboardInterrupt:
        print("kdrun: interrupted; the same words go on after the last whole shard", file=sys.stderr)
        sys.exit(130)


def print_sweep(folder: Path) -> None:
    """The table of a sweep's cells, when any has begun."""
    from kdrun.commands.compare import compare

    if any(folder.glob("*/run.json")):
        compare([folder])
        print(folder)


def show(command: str, words: Sequence[str]) -> None:
    """Print the composed, checked config of a command as YAML."""
    flags, typed = split_words(words)
    overrides = [expand_short_key(word, command) for word in typed]
    cells = answer(lambda: compose_cells(command, overrides, read_flags(flags), cli.CONF), typed)
    print(OmegaConf.to_yaml(OmegaConf.create(cells[0].config.model_dump(mode="json"))), end="")


# -- running -----------------------------------------------------------------------------------------------------------


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
    if isinstance(config, BenchConfig):
        from kdrun.commands.bench import bench

        return bench(config, directory, overrides=words)
    from kdrun.commands.evaluate import evaluate

    assert isinstance(config, EvaluateConfig)
    return evaluate(config, directory, overrides=words)
