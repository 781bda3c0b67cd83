"""From words to a run: compose and check every cell first, then let hydra.main run what is known to be good.

hydra.main is entered with an unchanged argv, so Hydra's whole grammar, its flags, launchers and sweepers keep working;
its one fault, error reports of many lines, is met by composing with the public API before it starts.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kdrun import cli
from kdrun.allowed import check_flags, check_secrets, check_typed
from kdrun.compose import Cell, complete, compose_cells, validate
from kdrun.config import CONFIGS, SHORT_KEYS, Section, TrainConfig
from kdrun.errors import UserError
from kdrun.prepare import check, compose_with_models, confirm_judge, make_missing_runs, make_missing_teachers, own_words
from kdrun.runs.directory import disk_trouble
from kdrun.runs.gpus import unseen_gpu
from kdrun.runs.ranks import alone, num_ranks, rank
from kdrun.runs.signals import exit_on_sigterm
from kdrun.runs.sweep import held
from kdrun.secrecy import without_secrets
from kdrun.sweep import (
    begin,
    check_sweep,
    device_of,
    launcher_words,
    resumed_words,
    run_cell,
    run_sweep,
    with_cached_teacher,
)
from kdrun.untrusted import printable
from kdrun.words import expand_short_key, in_folder, key_of, read_flags, shorten, split_words, value_of

TEXTS = ("teacher", "contrastive")  # rollouts of text that the teacher wrote before
NO_CHECK = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")


@contextmanager
def answered(typed: Sequence[str] = ()) -> Iterator[None]:
    """While the body runs, a UserError, or a disk that takes nothing more, becomes one line on standard error and exit
    code 2.

    Args:
        typed: the words as the person typed them, so that the line says mu where mu was typed for loss.mu.
    """
    try:
        yield
        return
    except UserError as error:
        message = " ".join(str(error).split())
    except Exception as error:
        trouble = disk_trouble(error) or _too_long(error)
        if trouble is None:
            raise
        message = trouble
    keys = {key_of(word) for word in typed}
    for key in keys & SHORT_KEYS:
        message = re.sub(rf"\bloss\.{key}\b", key, message)
    for key in (key for key in keys if key.startswith("cache.")):
        message = message.replace(f"teacher.{key.removeprefix('cache.')}", key)
    print(f"kdrun: {printable(shorten(without_secrets(message)))}", file=sys.stderr)
    sys.exit(2)


def _too_long(error: Exception) -> str | None:
    """What to say of a name that no file can have, whichever key it was typed for; None for any other error."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    return f"{str(error.filename)[:60]}...: is too long for the name of a file"


@contextmanager
def _interruptible(said: str = "interrupted") -> Iterator[None]:
    """While the body runs, Ctrl-C ends the process with a line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        if not rank():
            print(f"kdrun: {said}", file=sys.stderr)
        sys.exit(130)


def launch(command: str, words: Sequence[str], conf: Path) -> None:
    """Check every cell of a command, then run it through hydra.main. Exits with 2 on a user's mistake."""
    exit_on_sigterm()
    flags, typed = split_words(words)
    here = typed  # what the person typed, and no record
    of_runs: list[str] = []
    with answered():
        check_flags(flags)
    if any(flag in NO_CHECK for flag in flags):
        return run_hydra(command, flags, typed, conf)
    with answered():
        options = read_flags(flags)
        if num_ranks() > 1 and (command != "train" or options.multirun):
            raise UserError(
                f"torchrun: of kdrun's commands only train runs in {num_ranks()} processes; start this one plainly"
            )
        if command == "study":
            typed, of_runs = own_words(typed)
        resuming = command == "train" and options.multirun and value_of(typed, "resume") is not None
        if resuming:
            started, typed = resumed_words(typed)
            flags = [*started, *flags]
            options = read_flags(flags)
        if options.multirun and options.cfg:
            raise UserError("--cfg: shows the config of one run, so type kdrun train --cfg with the words of one cell")
        overrides = complete(command, [expand_short_key(word, command) for word in typed])
    with answered(typed):
        cells, overrides = compose_with_models(command, overrides, options, conf, weights=not options.cfg)
        if options.multirun:
            cells, overrides = with_cached_teacher(cells, overrides, options, conf)
            check_sweep(cells, overrides, resuming=resuming)
        _check_trust(cells, here)
        if not options.cfg:
            check(command, cells, overrides, options.multirun, resuming=resuming)
            if command == "judge" and not confirm_judge(cells, words):
                return None
    if options.multirun:
        folder = Path(str(cells[0].composed.hydra.sweep.dir))
        begin(command, folder, flags, overrides, cells)
    if command == "train" and not options.cfg:
        with answered(typed):
            count = _num_processes(cells)
        with alone(), answered():
            _make_missing_teachers(cells, options.config_dir, conf)
        if count > 1:
            overrides = _among_ranks(words, cells[0], overrides, count)
    if command == "study" and not options.cfg:
        overrides = make_missing_runs(
            cells[0], overrides, of_runs, sweep=lambda words: launch("train", ["--multirun", *words], conf)
        )
    if options.multirun:
        # The folder is fixed now, for its name may hold the time.
        overrides = in_folder([*overrides, *launcher_words(cells, overrides)], folder, key="hydra.sweep.dir")
        return run_sweep(folder, lambda: run_hydra(command, flags, overrides, conf), show=print_sweep)
    with _interruptible(), answered():
        run_hydra(command, flags, overrides, conf)
    return None


def _make_missing_teachers(cells: list[Cell], config_dir: str | None, conf: Path) -> None:
    make_missing_teachers(cells, config_dir, conf, train=lambda words: launch("train", words, conf))


def _num_processes(cells: Sequence[Cell]) -> int:
    from kdrun.commands.launching import num_processes

    counts = [num_processes(cell.config) for cell in cells if isinstance(cell.config, TrainConfig)]
    if len(cells) > 1 and max(counts) > 1:
        raise UserError("launch=: a sweep runs each cell in one process; type launch=local, or kdrun train for one run")
    return counts[0]


def _among_ranks(words: Sequence[str], cell: Cell, overrides: list[str], count: int) -> list[str]:
    """The overrides of a rank: all have one run directory. A process that is none starts them, and ends with them."""
    from kdrun.commands.launching import common_directory, run_ranks

    directory = Path(str(cell.composed.hydra.run.dir))
    if num_ranks() == 1:
        placed = in_folder(words, directory)
        sys.exit(run_ranks(placed[:-1] if value_of(overrides, "resume") else placed, count, directory))
    assert isinstance(cell.config, TrainConfig)
    return in_folder(overrides, common_directory(directory, cell.config.train.device))


def _check_trust(cells: Sequence[Cell], typed: Sequence[str]) -> None:
    """No secret is typed, and code of a model runs only where it is."""
    check_secrets({}, typed)
    for cell in cells:
        check_typed(cell.config, typed)


def cache(words: Sequence[str], conf: Path) -> None:
    """Make the teacher caches of a training: the words of `kdrun train` (or of a sweep), teacher=cached implied, unless
    they ask for the teacher's text."""
    flags, typed = split_words(words)
    with answered(typed):
        check_flags(flags)
        options = read_flags(flags)
        options.multirun = True  # a sweep's words are as good: its cells share their caches
        overrides = [expand_short_key(word) for word in typed]
        if not any(key_of(word) == "teacher" for word in overrides) and value_of(overrides, "rollout") not in TEXTS:
            overrides = ["teacher=cached", *overrides]
        cells, overrides = compose_with_models("train", overrides, options, conf)
        _check_trust(cells, typed)
        configs = [cell.config for cell in cells if isinstance(cell.config, TrainConfig)]
        if any(config.teacher.kind == "live" and config.rollout.name not in TEXTS for config in configs):
            raise UserError("teacher=live: kdrun cache makes what teacher=cached reads; leave teacher=live out")
        check("train", cells, overrides, False)
        _make_missing_teachers(cells, options.config_dir, conf)
    from kdrun.commands.cache import build_caches

    with _interruptible("interrupted; the same words go on after the last whole shard"), answered(typed):
        build_caches(configs)


def _training_to_look_at(words: Sequence[str], conf: Path, *, with_files: bool) -> tuple[TrainConfig, list[str]]:
    """The training that these words of `kdrun train` name, and what of the words was typed for it.

    Args:
        with_files: its files are checked, and weights of pair.random_init made.
    """
    flags, typed = split_words(words)
    with answered(typed):
        check_flags(flags)
        if value_of(typed, "resume") is not None:
            raise UserError("resume=: this looks at a training before it starts; type the words of that run instead")
        overrides = [expand_short_key(word) for word in typed]
        cells, overrides = compose_with_models("train", overrides, read_flags(flags), conf, weights=with_files)
        _check_trust(cells, typed)
        if with_files:
            check("train", cells, overrides, False)
    config = cells[0].config
    assert isinstance(config, TrainConfig)
    return config, typed


def doctor(words: Sequence[str], conf: Path, *, json: Path | None) -> None:
    """Look over the machine and the training that these words of `kdrun train` name. Exits with 1 for a fault."""
    config, typed = _training_to_look_at(words, conf, with_files=True)
    from kdrun.commands.doctor import doctor as run

    with _interruptible(), answered(typed):
        sys.exit(0 if run(config, json=json) else 1)


def plan(words: Sequence[str], conf: Path, *, gpu: str | None, utilisation: float, json: Path | None) -> None:
    """What the training that these words of `kdrun train` name would take."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded to be counted
    config, typed = _training_to_look_at(words, conf, with_files=False)
    from kdrun.commands.plan import plan as run

    with answered(typed):
        run(config, gpu=gpu, utilisation=utilisation, json=json)


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
    with answered(typed):
        check_flags(flags)
        cells = compose_cells(command, overrides, read_flags(flags), cli.CONF)
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
    exit_on_sigterm()  # a launcher's worker has not come through `launch`
    hydra = HydraConfig.get()
    command = str(hydra.job.name if hydra.job.name in CONFIGS else hydra.job.config_name)
    words = list(hydra.overrides.task)
    config = validate(command, composed, words)
    directory = Path(hydra.runtime.output_dir)
    group = Path(hydra.sweep.dir).name if hydra.mode is not None and hydra.mode.name == "MULTIRUN" else None
    log = logging.getLogger(__name__)
    if rank():
        _listen_to_rank_zero()
    if group is None:
        log.info("%s: %s", directory, " ".join(words))
        with answered():  # a user's mistake leaves here, in one line
            return run_alone(config, directory, words)
    try:
        return run_cell(config, directory, words, lambda config: dispatch(config, directory, words, group))
    except Exception as error:
        # Hydra keeps a failed job's exception, whose frames keep the model: later cells would run out of memory.
        known = isinstance(error, UserError)
        log.error("cell %s failed%s", directory.name, f": {error}" if known else "", exc_info=None if known else error)
        fault: BaseException | None = error
        while fault is not None:
            traceback.clear_frames(fault.__traceback__)
            fault = fault.__cause__ or fault.__context__
        raise
    finally:
        gc.collect()  # models lie in cycles, and the next cell wants their memory


def _listen_to_rank_zero() -> None:
    """One log: of another rank only warnings are shown."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
        handler.setLevel(logging.WARNING)


def run_alone(config: Section, directory: Path, words: list[str]) -> float:
    """One run that is no part of a sweep, or one cell that goes on by itself: no other process may have it."""
    if not (directory.parent / "sweep.json").exists():
        return dispatch(config, directory, words, None)
    with held(directory) as free:
        if not free:
            raise UserError(f"resume={directory}: another process runs this cell; wait for it, or stop it first")
        return dispatch(config, directory, words, directory.parent.name)


def dispatch(config: Section, directory: Path, words: list[str], group: str | None) -> float:
    """The command that a config belongs to."""
    key, device = device_of(config)
    if device == "auto" and (line := unseen_gpu(key, _torch_sees_a_gpu)):
        logging.getLogger(__name__).warning(line)
    if isinstance(config, TrainConfig):
        from kdrun.commands.train import train

        return train(config, directory, overrides=words, group=group)
    name = next(name for name, kind in CONFIGS.items() if isinstance(config, kind))
    run = getattr(import_module(f"kdrun.commands.{name}"), name)
    return float(run(config, directory, overrides=words))


def _torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
