"""kdrun cache: make the teacher caches and write the teacher's text that a training will read, ahead of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kdrun.commands.assembly import build_models, choose_device, chosen_loss, load_data, relative, run_sets
from kdrun.commands.cache_list import print_table
from kdrun.commands.rollouts import with_teacher_text
from kdrun.commands.teachers import Caches
from kdrun.config import CachedTeacher, TrainConfig
from kdrun.config.rollouts import TeacherText
from kdrun.errors import UserError
from kdrun.models.loading import quiet_libraries
from kdrun.native import fast_float32_products
from kdrun.teachers.listing import spell_bytes
from kdrun.teachers.manifest import read_manifest


def build_caches(configs: Sequence[TrainConfig]) -> None:
    """Make what is missing for every config and print a table of what is there: one line a set.

    Raises:
        UserError: naming the key; see `Caches`.
    """
    quiet_libraries()
    lines: dict[Path, list[str]] = {}
    for config in _distinct(configs):
        lines |= _build(config)
    print_table(["cache", "rows", "tokens", "size", "bytes/token", "seconds", "where"], list(lines.values()))


def _distinct(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """One config of those whose caches are the same: a sweep's cells differ in what the teacher does not see."""
    parts = ("role", "pair", "data", "teacher", "rollout", "evaluate", "eval")
    seen = {repr([getattr(c, part) for part in parts] + [c.loss.name, c.train.valid_rows, c.train.watch_teacher]
                 + [c.seed] * isinstance(c.rollout, TeacherText)): c
            for c in reversed(configs)}  # fmt: skip
    return list(reversed(seen.values()))


def _build(config: TrainConfig) -> dict[Path, list[str]]:
    """Folder of a set -> its line of the table."""
    device = choose_device(config.train.device)
    splits = load_data(config.data)
    models = build_models(config.pair, config.data, splits, role=config.role, seed=config.seed)
    sets = run_sets(config, splits, models.tokenizer, needs_teacher=chosen_loss(config.loss).needs_teacher)
    if not sets.asked and not isinstance(config.rollout, TeacherText):
        raise UserError(f"loss={config.loss.name}: this run asks no teacher, so it needs no cache")
    sets, text = with_teacher_text(config, models, sets, device=device, say=_say)
    lines = {Path(text["path"]): _line(Path(text["path"]), "texts", made=text["made_here"])} if text else {}
    if not sets.asked or not isinstance(config.teacher, CachedTeacher):
        return lines
    caches = Caches(config.teacher, config.pair, config.data, models, sets.asked, say=_say)
    with fast_float32_products():
        caches.ensure(device=device)
    caches.open(device="cpu", reader=None)  # every checksum, the fields of an old one
    return lines | {folder: _line(folder, name, made=name in caches.made) for name, folder in caches.folders.items()}


def _line(folder: Path, name: str, *, made: bool) -> list[str]:
    manifest = read_manifest(folder)
    num_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    seconds = f"{manifest['made']['seconds']:.1f}" if made else "was there"
    return [name, f"{manifest['rows']:,}", f"{manifest['tokens']:,}", spell_bytes(num_bytes),
            f"{manifest['row_bytes']:,}", seconds, relative(folder)]  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
