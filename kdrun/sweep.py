"""A sweep from its words to its end: which teacher and launcher, what is refused, one cell, how it goes on.

Hydra's sweepers and launchers run the cells; between their processes everything passes through the sweep's folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from kdrun.allowed import check_recorded, check_recorded_flags
from kdrun.compose import Cell, compose_cells, is_grid
from kdrun.config import Section, TrainConfig
from kdrun.errors import UserError
from kdrun.runs.directory import RECORD, RunDirectory
from kdrun.runs.gpus import claim_gpu, visible_gpus
from kdrun.runs.progress import progress_in
from kdrun.runs.sweep import differences, held, objective, read_cells, read_sweep, settle, start_sweep
from kdrun.secrecy import without_secrets
from kdrun.untrusted import printable
from kdrun.words import key_of, quote, value_of

log = logging.getLogger(__name__)

# What may change when a sweep goes on: where and how its cells run, never what they compute.
MACHINE = ("train.device", "train.threads", "track.mode")


def resumed_words(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides that enter a sweep again: those that started it, then what was typed after resume=DIR.

    Raises:
        UserError: when the folder holds no sweep, was started elsewhere, or another config is asked for.
    """
    folder = value_of(typed, "resume")
    sweep = read_sweep(folder or "", key="resume")
    extra = [word for word in typed if key_of(word) != "resume"]
    check_recorded(sweep["words"], extra, key=f"resume={folder}", sweep=True)
    check_recorded_flags(sweep["flags"], key=f"resume={folder}")
    typable = (*MACHINE, "pair.trust_remote_code")
    refused = [key for key in map(key_of, extra) if not (key in typable or _is_launcher(key))]
    if refused:
        raise UserError(
            f"resume={folder}: a sweep goes on with the words that it was started with, so {', '.join(refused)} cannot "
            f"be typed; only hydra/launcher, hydra.launcher.*, {', '.join(MACHINE)} can; other values are another sweep"
        )
    if Path(sweep["directory"]).resolve() != Path.cwd().resolve():
        raise UserError(f"resume={folder}: this sweep's paths start at {sweep['directory']}; cd there first")
    new = {key_of(word) for word in extra}
    words = [w for w in sweep["words"] if key_of(w) not in new]
    if "hydra/launcher" in new:  # the old launcher's settings are not the new one's
        words = [word for word in words if not _is_launcher(key_of(word))]
    return sweep["flags"], [*words, *extra, f"hydra.sweep.dir={quote(folder)}"]


def _is_launcher(key: str) -> bool:
    return key == "hydra/launcher" or key.startswith("hydra.launcher.")


def with_cached_teacher(
    cells: list[Cell], overrides: list[str], options: argparse.Namespace, conf: Path
) -> tuple[list[Cell], list[str]]:
    """The same sweep with teacher=cached, when nobody typed teacher= and a teacher would run beside every cell."""
    configs, hydra = [cell.config for cell in cells], cells[0].composed.hydra
    if any(key_of(word).split(".")[0] == "teacher" for word in overrides) or (is_grid(hydra) and len(cells) < 2):
        return cells, overrides
    if not all(isinstance(c, TrainConfig) and c.teacher.kind == "live" and c.role == "student" for c in configs):
        return cells, overrides
    if all(c.loss.name == "sft" for c in configs) or any(c.student_writes for c in configs):  # type: ignore[attr-defined]
        return cells, overrides
    overrides = ["teacher=cached", *overrides]
    print("teacher=cached: its one pass serves all cells; type teacher=live to run it beside each", file=sys.stderr)
    return compose_cells("train", overrides, options, conf), overrides


def check_sweep(cells: list[Cell], overrides: list[str], *, resuming: bool) -> None:
    """A launcher that can run these cells where they are meant to run; a resumed sweep's cells are the same.

    Raises:
        UserError: naming the key.
    """
    hydra = cells[0].composed.hydra
    if OmegaConf.to_container(hydra.sweep)["subdir"] != "${hydra:job.num}":  # type: ignore[index, call-overload]
        raise UserError("hydra.sweep.subdir: cells lie in folders named by their number; leave it out")
    devices = dict.fromkeys(device_of(cell.config) for cell in cells)
    launcher = _launcher(hydra)
    for key, device in devices:
        if "submitit" in launcher:
            _check_submitit(hydra, key, device)
        elif "joblib" in launcher and device.startswith("cuda:"):
            raise UserError(f"{key}={device}: hydra/launcher=joblib gives every process a GPU; type {key}=cuda")
    if "joblib" in launcher and (gpus := _gpus(cells)) and not 0 <= _jobs(cells, overrides) <= len(gpus):
        raise UserError(
            f"hydra.launcher.n_jobs={hydra.launcher.n_jobs}: a job has a GPU to itself, and there are {len(gpus)} "
            f"({', '.join(gpus)}); leave it out for {len(gpus)}, or type {next(iter(devices))[0]}=cpu"
        )
    if resuming:
        _check_same(Path(value_of(overrides, "hydra.sweep.dir") or ""), cells)


def device_of(config: Any) -> tuple[str, str]:
    """The key where a command takes its device, and its value."""
    return ("train.device", config.train.device) if isinstance(config, TrainConfig) else (
        "device", str(getattr(config, "device", "auto"))
    )  # fmt: skip


def _launcher(hydra: Any) -> str:
    """The class of Hydra's launcher: basic_launcher, joblib or submitit is part of its name."""
    return str(hydra.launcher.get("_target_", ""))


def _check_submitit(hydra: Any, key: str, device: str) -> None:
    name, settings = hydra.runtime.choices["hydra/launcher"], hydra.launcher
    if name == "submitit_slurm" and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm: no srun on this machine; start the sweep on a node of a SLURM cluster, "
            "or type hydra/launcher=joblib to run it here"
        )
    gpus = any(settings.get(k) for k in ("gpus_per_node", "gpus_per_task")) or "gpu" in str(settings.get("gres") or "")
    if device == "auto":
        raise UserError(
            f"{key}=auto: under hydra/launcher={name} say where the jobs run: type {key}=cuda "
            f"hydra.launcher.gpus_per_node=1, or {key}=cpu"
        )
    if device.startswith("cuda") and name == "submitit_local":
        raise UserError(
            f"{key}={device}: hydra/launcher=submitit_local puts every job on the first GPU, all at once; "
            "type hydra/launcher=joblib, which gives each job one of its own"
        )
    if device.startswith("cuda") and not gpus:
        raise UserError(f"{key}={device}: no GPU is asked of the cluster; type hydra.launcher.gpus_per_node=1")


def _gpus(cells: Sequence[Cell]) -> list[str]:
    """The GPUs that cells may take; none for cells that run elsewhere."""
    return visible_gpus() if any(device_of(cell.config)[1] in ("auto", "cuda") for cell in cells) else []


def _jobs(cells: Sequence[Cell], overrides: Sequence[str]) -> int:
    n_jobs = int(cells[0].composed.hydra.launcher.n_jobs)
    return 1 if n_jobs == -1 and value_of(overrides, "hydra.launcher.n_jobs") is None else n_jobs


def launcher_words(cells: Sequence[Cell], overrides: Sequence[str]) -> list[str]:
    """What follows for the launcher: with joblib as many jobs as there are GPUs, one without."""
    launcher = cells[0].composed.hydra.launcher
    if "joblib" not in _launcher(cells[0].composed.hydra) or value_of(overrides, "hydra.launcher.n_jobs") is not None:
        return []
    return [f"hydra.launcher.n_jobs={max(len(_gpus(cells)), 1)}"] if launcher.n_jobs == -1 else []


def _check_same(folder: Path, cells: list[Cell]) -> None:
    """The cells of a sweep that goes on are those that it had: no config file changed under it."""
    sweep = read_sweep(folder, key="resume")
    if sweep["cells"] is None:
        sampler = cells[0].composed.hydra.sweeper.get("sampler") or {}
        if sampler.get("seed") is None:
            raise UserError(
                f"resume={folder}: this search proposes other values each time; only one that was started with "
                "hydra.sweeper.sampler.seed=N can go on"
            )
        return
    if sweep["cells"] != [cell.swept for cell in cells]:
        raise UserError(f"resume={folder}: the config files in use give another grid now; start another sweep")
    for number, cell in enumerate(cells):
        run = folder / str(number)
        if (run / RECORD).exists():
            _refuse_differences(run, cell.config, key=f"resume={folder}")


def _refuse_differences(folder: Path, config: Section, *, key: str) -> None:
    before = RunDirectory.open(folder, key=key).config()
    found = differences(before, config.model_dump(mode="json"), ignored=("resume", *MACHINE))
    if found:
        name, (old, new) = next(iter(found.items()))
        raise UserError(
            f"{key}: cell {folder.name} was started with {name}={old}, now {name}={new} (differing: "
            f"{', '.join(found)}); put the config files back, or start another sweep"
        )


def begin(command: str, folder: Path, flags: Sequence[str], overrides: Sequence[str], cells: list[Cell]) -> None:
    """Write sweep.json; with the basic launcher, take a GPU now, before torch is loaded in this process."""
    hydra = cells[0].composed.hydra
    grid = is_grid(hydra)
    start_sweep(
        folder, command=command, flags=[flag for flag in flags if flag not in ("--multirun", "-m")],
        words=[word for word in overrides if key_of(word) != "hydra.sweep.dir"],
        cells=[cell.swept for cell in cells] if grid else None,
        fixed=[key_of(word) for word in cells[0].words if word not in cells[0].swept],
        total=len(cells) if grid else int(hydra.sweeper.get("n_trials") or 1),
        launcher=hydra.runtime.choices["hydra/launcher"],
    )  # fmt: skip
    settle(folder)
    if "basic_launcher" in _launcher(hydra) and _gpus(cells):
        claim_gpu(waiting=lambda line: print(line, file=sys.stderr))


def run_sweep(folder: Path, enter: Callable[[], None], *, show: Callable[[Path], None]) -> None:
    """Run a sweep under its one display and end with its table and summary.

    Exits with 1 when a cell failed, with 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        enter: runs the cells, through Hydra.
        show: prints the table of the cells.
    """
    from kdrun.commands.sweep import shown, summarise

    code: int = 0
    try:
        with shown(folder):
            enter()
    except KeyboardInterrupt:
        print("kdrun: interrupted", file=sys.stderr)
        code = 130
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        said = printable(without_secrets(f"{type(error).__name__}: {error}"))
        told = said in {cell.error for cell in read_cells(folder)}
        if not told and not isinstance(error, UserError):
            raise  # not a cell's, whose traceback is in its log
        if not told:
            print(f"kdrun: {error}", file=sys.stderr)
        code = 1
    finally:
        if "submitit" not in read_sweep(folder, key="sweep")["attempts"][-1]["launcher"]:
            settle(folder)  # jobs in a queue go on without this process
        show(folder)
        summarise(folder)
    if code := code or int(any(cell.status == "failed" for cell in read_cells(folder))):
        sys.exit(code)


# -- one cell, in whichever process ------------------------------------------------------------------------------------


def run_cell(config: Section, directory: Path, words: Sequence[str], run: Callable[[Section], float]) -> float | None:
    """Run one cell and return its objective; one that is done returns what it came to, without running again.

    A cell that an earlier attempt left goes on from its checkpoints, or starts afresh when it has none.
    """
    with held(directory) as free:
        if not free:
            print(f"cell {directory.name}: another process runs it; left to it", file=sys.stderr)
            return None
        if (directory / RECORD).exists():
            earlier = RunDirectory.open(directory, key="resume")
            _refuse_differences(directory, config, key=f"resume={directory.parent}")
            if earlier.record["status"] == "done":
                found = objective(earlier.summary())
                return found[1] if found else None
            if isinstance(config, TrainConfig):
                config = config.model_copy(update={"resume": str(directory)})
        launcher = _launcher(HydraConfig.get())
        with progress_in(directory), _quiet(directory, own_process="joblib" in launcher):
            log.info("%s: %s", directory, " ".join(words))
            if "joblib" in launcher and device_of(config)[1] in ("auto", "cuda"):
                claim_gpu(waiting=log.info)
            return run(config)


@contextmanager
def _quiet(directory: Path, *, own_process: bool) -> Iterator[None]:
    """Keep a cell's messages off the sweep's display: a worker's go to its log.txt, else warnings alone are shown."""
    consoles = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL + 1 if own_process else logging.WARNING)
    if not own_process:
        yield
        return
    kept = [os.dup(1), os.dup(2)]
    with (directory / "log.txt").open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
