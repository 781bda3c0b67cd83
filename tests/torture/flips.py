"""Single bits flipped at random in teacher caches and checkpoints: every flip is found, or changes nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import SMALL
from tests.torture.processes import TEACHER
from tests.torture.rows import Row

FLIPS = 200  # of each kind
RESUMED = 6  # of the flips in checkpoints, with the real command to its end
REFUSED = 4  # of the flips in caches, with the real command
SEED = 20260101


def run(folder: Path, budget_s: float) -> list[Row]:
    """Make one cached run with checkpoints, then flip bits in copies of both."""
    logging.disable(logging.WARNING)  # a checkpoint that is not used is said so, 200 times
    end = time.monotonic() + 0.85 * budget_s  # the last commands end after it
    words = ["teacher=cached", *SMALL, "train.max_steps=6", "train.save_every=2", "evaluate=false"]
    for command in (TEACHER, [*words, "hydra.run.dir=whole"]):
        done = kdrun(folder, "train", *command)
        assert done.returncode == 0, done.stderr
    rng = random.Random(SEED)
    try:
        rows = [
            flip_many("a flipped bit in a teacher cache is found, or harmless", look_at_cache, folder, rng, end),
            flip_many("a flipped bit in a checkpoint is found, or harmless", look_at_checkpoint, folder, rng, end),
        ]
    finally:
        logging.disable(logging.NOTSET)
    with ThreadPoolExecutor(2) as pool:
        seeds = [rng.random() for _ in range(max(RESUMED, REFUSED))]
        resumed = list(pool.map(lambda i: resume_flipped(folder, i, seeds[i], end), range(RESUMED)))
        refused = list(pool.map(lambda i: refuse_flipped(folder, words, i, seeds[i], end), range(REFUSED)))
    return [
        *rows,
        count("kdrun train resume= after a flip in the newest checkpoint ends bit-equal", resumed),
        count("kdrun train on a flipped cache ends with exit 2 and the file's name, the cache untouched", refused),
    ]


def kdrun(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def count(promise: str, found: list[bool | None]) -> Row:
    """A row of those that were tried before the time was up."""
    tried = [one for one in found if one is not None]
    return Row(promise, len(tried), sum(tried), "with the command itself")


# -- many flips, in this process ---------------------------------------------------------------------------------------


def flip_many(
    promise: str, look: Callable[[Path, Path, Path], str], folder: Path, rng: random.Random, end: float
) -> Row:
    """FLIPS flips, each in a fresh copy; half of them anywhere by size, half in a file drawn first, so that small ones
    have their share."""
    source = folder / ("outputs/cache" if look is look_at_cache else "whole/checkpoints")
    told: Counter[str] = Counter()
    for number in range(FLIPS):
        if time.monotonic() > end:
            break
        copy = folder / "copies" / f"{look.__name__}-{number}"
        shutil.copytree(source, copy)
        target = flip(copy, rng, by_size=number % 2 == 0, only=None if look is look_at_cache else "step-6")
        try:
            told[look(source, copy, target)] += 1
        except Exception as error:  # a crash is a flip that was not found in the promised way
            told[f"crashed ({type(error).__name__} in {target.name})"] += 1
        shutil.rmtree(copy)
    kept = told["found"] + told["harmless"]
    return Row(promise, sum(told.values()), kept, ", ".join(f"{n} {name}" for name, n in told.most_common()))


def flip(folder: Path, rng: random.Random, *, by_size: bool, only: str | None) -> Path:
    """Flip one bit of one file and keep its times, as a failing disk does; returns the file."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size and p.suffix != ".lock"]
    files = [path for path in files if path.name not in ("hashes.json", "uses.jsonl")]  # notes: nothing rests on them
    files = [path for path in files if only is None or only in path.parts]
    path = rng.choices(files, [p.stat().st_size for p in files] if by_size else None)[0]
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return path


def look_at_cache(source: Path, copy: Path, target: Path) -> str:
    """Open every set of a cache as a run does, and read all of it: found, harmless, or what was lost."""
    from kdrun.errors import UserError

    whole = {path.relative_to(source): read_all(path.parent) for path in sorted(source.glob("*/*/manifest.json"))}
    for name, before in whole.items():
        identity = json.loads((source / name).read_text())["identity"]
        try:
            if read_all(copy / name.parent, identity) != before:
                return "not found"
        except UserError as error:
            return "found" if str(copy) in str(error) else f"found, but told as: {error}"
    return "harmless"


def read_all(folder: Path, identity: dict | None = None) -> str:
    """sha256 over every token's bytes, in the order of the rows, and over the head."""
    import numpy as np

    from kdrun.teachers.cached import open_cache, read_head

    identity = identity or json.loads((folder / "manifest.json").read_text())["identity"]
    shards = open_cache(folder, identity, key="teacher=cached")
    rows = np.arange(len(shards.length_R))
    content = np.empty((shards.count(rows), shards.row_bytes), dtype=np.uint8)
    shards.read(rows, content)
    head = read_head(folder.parent, device="cpu")
    return hashlib.sha256(content.tobytes() + head.weight_VD.numpy().tobytes()).hexdigest()


def look_at_checkpoint(source: Path, copy: Path, target: Path) -> str:
    """Which checkpoint a run would go on from: found when it is the one before, harmless when nothing that is loaded
    differs."""
    from kdrun.training.checkpoints import newest_checkpoint

    run_id = json.loads((source.parent / "run.json").read_text())["run_id"]
    newest = newest_checkpoint(copy, run=run_id)
    if newest is not None and newest.step == 4:
        return "found"
    same = target.name == "manifest.json" and newest is not None and newest.step == 6  # it lists, it is not loaded
    return "harmless" if same else "not found"


# -- some flips, with the command --------------------------------------------------------------------------------------


def resume_flipped(folder: Path, number: int, seed: float, end: float) -> bool | None:
    """Whether a run whose newest checkpoint has a flipped bit ends with the student of the whole run."""
    if time.monotonic() > end:
        return None
    copy = folder / f"resumed-{number}"
    shutil.copytree(folder / "whole", copy)
    target = flip(copy / "checkpoints", random.Random(seed), by_size=False, only="step-6")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    done = kdrun(folder, "train", f"resume={copy}")
    name = "student/model.safetensors"
    same = (copy / name).read_bytes() == (folder / "whole" / name).read_bytes()
    named = target.name in done.stderr or "manifest.json" in done.stderr
    return done.returncode == 0 and same and (named or target.name == "manifest.json")


def refuse_flipped(folder: Path, words: list[str], number: int, seed: float, end: float) -> bool | None:
    """Whether a run that reads a flipped cache is refused in one line that names a file of it."""
    if time.monotonic() > end:
        return None
    cache, run_folder = folder / f"cache-{number}", folder / f"refused-{number}"
    shutil.copytree(folder / "outputs/cache", cache)
    flip(cache, random.Random(seed), by_size=True, only=None)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file() and path.name != "uses.jsonl"}
    done = kdrun(folder, "train", *words, f"teacher.directory={cache}", f"hydra.run.dir={run_folder}")
    after = {path: path.read_bytes() for path in before}
    said = [line for line in done.stderr.splitlines() if line.startswith("kdrun: ")]
    status = json.loads((run_folder / "run.json").read_text())["status"]
    return done.returncode == 2 and len(said) == 1 and str(cache) in said[0] and status == "failed" and after == before
