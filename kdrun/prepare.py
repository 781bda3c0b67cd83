"""Before the runs of a command start: what a config alone cannot say is checked, and a missing teacher is made."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kdrun.compose import Cell, compose_cells, search_words
from kdrun.config import BenchConfig, EvaluateConfig, JudgeConfig, StudyConfig, TrainConfig
from kdrun.config.study import HeadtailStudy
from kdrun.errors import UserError
from kdrun.words import in_folder, key_of, quote, value_of


def compose_with_models(
    command: str, overrides: list[str], options: argparse.Namespace, conf: Path, *, weights: bool = True
) -> tuple[list[Cell], list[str]]:
    """Every cell composed, and the overrides: with words that put models of random weights, made now, in the place of
    the pair's checkpoints where pair.random_init asks for it.

    Args:
        weights: false: their config.json and tokenizer alone are made.
    """
    cells = compose_cells(command, overrides, options, conf)
    found = {repr(pair): cell.config for cell in cells if (pair := getattr(cell.config, "pair", None)) is not None}
    if not any(getattr(config.pair, "random_init", False) for config in found.values()):  # type: ignore[attr-defined]
        return cells, overrides
    from kdrun.commands.preconditions import check_data, check_scoring
    from kdrun.commands.random_init import is_random, random_models

    if len(found) > 1:
        raise UserError("pair.random_init=true: a sweep of random weights has one pair; leave pair out of its axes")
    config: Any = next(iter(found.values()))
    if is_random(config.pair.teacher) and is_random(config.pair.student):  # a run that goes on
        return cells, overrides
    check_data(config.data)
    if weights and getattr(config, "evaluate", True):
        check_scoring(config.eval)  # before gigabytes are made
    shapes = yaml.safe_load((conf / "pair" / "_shapes.yaml").read_text(encoding="utf-8"))
    models = random_models(config.pair, shapes.get(config.pair.name, {}), weights=weights)
    words = [f"pair.{role}={quote(str(folder))}" for role, folder in models.items()]
    overrides = [*overrides, *words, "pair.sft=null"]
    return compose_cells(command, overrides, options, conf), overrides


def check(command: str, cells: list[Cell], overrides: list[str], multirun: bool, *, resuming: bool = False) -> None:
    """What a config alone cannot say: files exist and parse, the run directory is free, a resumed run is the same."""
    from kdrun.commands.bench import check_bench
    from kdrun.commands.judge import check_judge
    from kdrun.commands.preconditions import check_evaluate, check_resume, check_train
    from kdrun.commands.study import check_study
    from kdrun.runs.directory import RunDirectory, take

    seen: set[str] = set()
    for cell in cells:
        config = cell.config
        if isinstance(config, JudgeConfig):
            if multirun:
                raise UserError("--multirun: judge takes all of runs=[DIR,...] at once; type it once for each judge")
            check_judge(config)
            continue
        key = "".join(repr(getattr(config, group, None)) for group in ("data", "pair", "teacher", "rollout", "adapter"))
        if getattr(getattr(config, "teacher", None), "topk", None) is not None:
            key += repr(config.loss)  # type: ignore[attr-defined]
        if key in seen:  # one look at each file, however many cells a sweep has
            continue
        seen.add(key)
        if isinstance(config, TrainConfig):
            check_train(config)
        elif isinstance(config, EvaluateConfig):
            check_evaluate(config)
        elif isinstance(config, BenchConfig):
            check_bench(config)
        elif isinstance(config, StudyConfig):
            check_study(config)
    config = cells[0].config
    if isinstance(config, TrainConfig) and config.resume is not None:
        if multirun:
            raise UserError("resume=: continues one run here; type kdrun sweep resume=DIR to go on with a sweep")
        run = RunDirectory.open(config.resume, key="resume")
        typed = {key_of(word) for word in Counter(overrides) - Counter(run.record["overrides"])}
        check_resume(config, run, sorted(typed - {"resume", "hydra.run.dir"}))
        take(run.path, key=f"resume={config.resume}")
        return
    kind, record = ("sweep", "sweep.json") if multirun else ("run", "run.json")
    folder = value_of(overrides, f"hydra.{kind}.dir")
    if not folder or resuming:
        return
    if (multirun and any(Path(folder).glob("*/run.json"))) or (Path(folder) / record).exists():
        raise UserError(
            f"hydra.{kind}.dir={folder}: holds a {kind} already; choose another folder, or go on with resume={folder}"
        )


def confirm_judge(cells: list[Cell], words: Sequence[str]) -> bool:
    """Whether the requests of `kdrun judge` may be sent; prints what they would cost."""
    from kdrun.commands.judge import confirm

    return confirm([cell.config for cell in cells if isinstance(cell.config, JudgeConfig)], words)


def own_words(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `kdrun study` for the study itself, and those for the sweep that `study=headtail` looks at."""
    if value_of(typed, "study") != "headtail":
        return list(typed), []
    own = [word for word in typed if key_of(word).split(".")[0] in (*StudyConfig.model_fields, "hydra")]
    sweep = [word for word in typed if word not in own]
    if sweep and value_of(own, "study.runs") is not None:
        raise UserError(f"{sweep[0]}: study.runs= names runs that are made; leave out one of the two")
    return own, sweep


def make_missing_runs(
    cell: Cell, overrides: list[str], words: list[str], *, sweep: Callable[[list[str]], None]
) -> list[str]:
    """The overrides of a study, completed by runs that it needs and that were not named: a sweep inside its folder.

    Args:
        words: of the sweep, beside its experiment. sweep: runs `kdrun sweep` with words.
    """
    section = getattr(cell.config, "study", None)
    if not isinstance(section, HeadtailStudy) or section.runs is not None:
        return overrides
    folder = Path(str(cell.composed.hydra.run.dir))
    words = ["experiment=headtail", *words, f"hydra.sweep.dir={quote(str(folder / 'runs'))}"]
    try:
        sweep(words)
    except BaseException:
        if (folder / "runs" / "sweep.json").exists():
            print("The study itself did not begin; when the runs are done, type:", file=sys.stderr)
            print(f"  kdrun study headtail study.runs={folder / 'runs'}", file=sys.stderr)
        raise
    return in_folder([*overrides, f"study.runs={quote(str(folder / 'runs'))}"], folder)


def make_missing_teachers(
    cells: list[Cell], config_dir: str | None, conf: Path, *, train: Callable[[list[str]], None]
) -> None:
    """Run the fine-tuning of a scratch pair's teacher when its folder is not there yet, once for all cells.

    Args:
        train: runs `kdrun train` with these words.
    """
    from kdrun.commands.preconditions import missing_teacher
    from kdrun.runs.directory import claim

    for cell in {repr(cell.config.pair) + repr(cell.config.data): cell for cell in cells}.values():  # type: ignore[attr-defined]
        folder = missing_teacher(cell.config)  # type: ignore[arg-type]
        if folder is None:
            continue
        with claim(folder):  # two processes that want the same teacher train it once
            if missing_teacher(cell.config) is None:  # type: ignore[arg-type]
                continue
            flags = ["--config-dir", config_dir] if config_dir else []
            words = teacher_words(cell, folder, conf, search_words(config_dir))
            print(f"No teacher at {folder} yet: fine-tuning one, once. The same by hand:", file=sys.stderr)
            print("  kdrun train " + " ".join([*flags, *words]), file=sys.stderr)
            _train_aside(folder, words, flags=flags, train=train)


def _train_aside(folder: Path, words: list[str], *, flags: list[str], train: Callable[[list[str]], None]) -> None:
    """Run a teacher's fine-tuning under another name, which it keeps until it is done: a process that looks meanwhile
    finds no teacher, and not the beginning of one."""
    from kdrun.runs.directory import RunDirectory

    if folder.exists():  # begun there by hand
        return train([*flags, *words])
    aside = folder.with_name(f".{folder.name}.begun")
    if not (aside / "run.json").exists():
        train([*flags, *in_folder(words, aside)])
    elif RunDirectory.open(aside, key="pair.teacher").record.get("status") != "done":
        train([*flags, f"resume={quote(str(aside))}"])
    aside.rename(folder)


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
    return in_folder([*words, f"pair.teacher={quote(str(folder))}"], folder)
