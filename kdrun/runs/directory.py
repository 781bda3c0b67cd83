"""A run directory: run.json (what ran, how it ended), config.yaml, metrics.jsonl, summary.json, folders beside them.

The record is written at the start and at every change of state, aside and renamed, so that a reader never sees half a
file and a killed run still says what it was.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdrun.errors import UserError
from kdrun.runs.folders import remove_leftovers
from kdrun.runs.locks import try_lock
from kdrun.runs.provenance import provenance
from kdrun.runs.ranks import from_rank_zero, num_ranks, rank
from kdrun.runs.records import check_run, json_lines, read_json
from kdrun.secrecy import without_secrets

if TYPE_CHECKING:
    from filelock import BaseFileLock

RECORD = "run.json"
LOCK = ".run.lock"
# What a person can do about a disk that takes nothing more.
DISK = {
    errno.ENOSPC: "make room on the disk", errno.EDQUOT: "make room in your quota", errno.EROFS: "choose another place",
    errno.EFBIG: "allow larger files (ulimit -f)", errno.EACCES: "get the right to use it",
}  # fmt: skip
log = logging.getLogger(__name__)
# The run directories that are this process's own. The system frees the locks of a process that dies.
_taken: dict[Path, BaseFileLock] = {}


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: aside, flushed to the disk, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: Any) -> None:
    """Write a file whole or not at all: aside, flushed to the disk, then renamed; nothing stays aside on a full disk.

    Raises:
        OSError: of the disk, with the file's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity are written as null, for every reader's sake."""
    write_text(path, _json(content))


def _json(content: Any) -> str:
    return json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n"


def _overwrite(path: Path, text: str) -> bool:
    """Whether a file was written over in place, which needs no room on a full disk when it has got the blocks."""
    content = text.encode()
    try:
        if path.stat().st_blocks * 512 < len(content):
            return False
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()
        return True
    except OSError:
        return False


def disk_trouble(error: BaseException) -> str | None:
    """Why a file could not be written or opened, in a line, when that is the disk's doing; None for any other error."""
    told = re.search(r"os error (\d+)", str(error))  # safetensors raises its own
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number not in DISK:
        return None
    place = getattr(error, "filename", None) or "the run directory"
    return f"{place}: {os.strerror(number)}; {DISK[number]}, then run again, or go on (kdrun train resume=DIR)"


def iso_now() -> str:
    """This second with the time zone, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return str(value) if isinstance(value, Path) else value


@dataclass
class RunDirectory:
    """A folder with a run record. `start` makes one, `open` reads one. Of several ranks, rank 0 alone writes it; any
    may write why it failed."""

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, *, key: str) -> RunDirectory:
        """Read an existing run directory.

        Raises:
            UserError: naming `key`, when the folder is missing or is no run directory.
        """
        path = Path(folder)
        if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
            raise UserError(f"{key}={folder}: no such folder")
        record = read_json(path / RECORD, key=f"{key}={folder}")
        check_run(record, at=f"{key}={folder}: {path / RECORD}")
        return cls(path, record)

    @classmethod
    def start(
        cls,
        path: Path,
        *,
        command: str,
        config: dict[str, Any],
        overrides: Sequence[str],
        extra: dict[str, Any] | None = None,
    ) -> RunDirectory:
        """Write config.yaml and run.json (state running); an earlier record there is kept among its attempts.

        Raises:
            UserError: when another process writes there.
        """
        path.mkdir(parents=True, exist_ok=True)
        take(path, key=str(path))
        run = cls(path)
        if rank():
            run.record = from_rank_zero(dict)
            return run
        attempts = []
        if (path / RECORD).exists():
            earlier = read_json(path / RECORD, key=str(path))
            attempts = [*earlier.pop("attempts", []), earlier]
        run.record = {
            "command": command,
            "status": "running",
            "error": None,
            "overrides": list(overrides),
            "started": iso_now(),
            "ended": None,
            "duration_s": None,
            **(extra or {}),
            **provenance(),
            "attempts": attempts,
        }
        write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        run.save()
        from_rank_zero(lambda: run.record)
        return run

    def save(self) -> None:
        """Write run.json."""
        if not rank():
            write_json(self.path / RECORD, self.record)

    def note(self, **facts: Any) -> None:
        """Add facts to run.json now."""
        self.record.update(facts)
        self.save()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record how the body ends: done, interrupted (Ctrl-C, SIGTERM) or failed; nothing is swallowed. Then the
        directory is free for other processes."""
        start = time.monotonic()
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            said = without_secrets(f"{type(error).__name__}: {error}")
            if disk_trouble(error):
                with suppress(OSError):  # what was half written takes the room that the record needs
                    remove_leftovers(self.path)
                    remove_leftovers(self.path / "checkpoints")
            if num_ranks() == 1 or self._is_first(interrupted, said):
                self._end("interrupted" if interrupted else "failed", start, said)
            if not interrupted:
                log.debug("run failed", exc_info=True)
            raise
        else:
            self._end("done", start, None)
        finally:
            let_go(self.path)

    def _is_first(self, interrupted: bool, said: str) -> bool:
        """Whether no other rank has written yet why the run failed; rank 0 still has to, the others have done so."""
        record = read_json(self.path / RECORD, key=str(self.path))
        if record["status"] != "running":
            return False
        if not interrupted:
            self.record["traceback"] = without_secrets(traceback.format_exc())
        if rank() and not interrupted:
            told = {"status": "failed", "error": f"rank {rank()}: {said}", "traceback": self.record["traceback"]}
            write_json(self.path / RECORD, {**record, **told, "ended": iso_now()})
        return not rank()

    def await_end(self, timeout_s: float = 60) -> None:
        """Wait until rank 0 has written how the run ended: launchers end all ranks as soon as one has."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and read_json(self.path / RECORD, key=str(self.path))["status"] == "running":
            time.sleep(0.1)

    def _end(self, status: str, start: float, error: str | None) -> None:
        try:
            self.note(status=status, error=error, ended=iso_now(), duration_s=round(time.monotonic() - start, 3))
        except OSError as trouble:
            if status == "done":
                raise
            if not _overwrite(self.path / RECORD, _json(self.record)):
                log.error("%s cannot be written (%s), so it does not say: %s", self.path / RECORD, trouble, error)

    def config(self) -> dict[str, Any]:
        """The resolved config that the run was started with."""
        path = self.path / "config.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: does not hold a config")
        return content

    def summary(self) -> dict[str, Any]:
        """The final metrics; empty when the run has none yet."""
        path = self.path / "summary.json"
        return read_json(path, key=str(path)) if path.exists() else {}

    def model_folder(self) -> Path | None:
        """The folder with the model that the run left: student/, or teacher/ for role=teacher."""
        return next(
            (self.path / role for role in ("student", "teacher") if (self.path / role / "config.json").exists()), None
        )


def evaluation_directory(run: Path, name: str) -> Path:
    """A fresh folder for one evaluation of a run: eval/<name>, or eval/<name>-2, ... when that is taken, or may be what
    the run itself, still under way, will write."""
    record = read_json(run / RECORD, key=str(run)) if (run / RECORD).exists() else {}
    first = 2 if record.get("status") == "running" else 1
    candidates = (run / "eval" / (name if n == 1 else f"{name}-{n}") for n in range(first, 10_000))
    return next(folder for folder in candidates if not folder.exists())


def take(folder: Path, *, key: str) -> None:
    """Make a run's directory this process's own until its record ends, or the process does.

    Raises:
        UserError: naming `key`, when another process has it.
    """
    place = folder.resolve()
    if place in _taken or rank():  # of several ranks, rank 0 has it
        return
    lock = try_lock(place / LOCK)
    if lock is None:
        raise UserError(f"{key}: {_holder(place / LOCK)} writes there; wait for it, or stop it first")
    _taken[place] = lock


def let_go(folder: Path) -> None:
    """Leave a run's directory to other processes."""
    if lock := _taken.pop(folder.resolve(), None):
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _holder(lock: Path) -> str:
    """Which process has a lock, where the system tells: Linux does, of its own processes."""
    try:
        inode, locks = lock.stat().st_ino, Path("/proc/locks").read_text()
    except OSError:
        return "another process"
    found = re.search(rf"FLOCK +ADVISORY +WRITE ([1-9]\d*) \S+:{inode} ", locks)
    return f"process {found[1]} on {platform.node()}" if found else "another process"


@contextmanager
def claim(folder: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock beside a folder: of several processes that want to make it, one does and the others wait.

    Args:
        waiting: called once when another process holds the lock, before waiting for it.
    """
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each line written at once; of several ranks, by rank 0."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = (Path(os.devnull) if rank() else path).open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps(_plain(values), ensure_ascii=False) + "\n")

    def sync(self) -> None:
        """Have every line so far on the disk: a power cut must not leave a checkpoint without the lines before it."""
        if not rank():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"mu": 0.5}} -> {"loss.mu": 0.5}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Take out of metrics.jsonl what a resumed run will do again: lines of later steps, and a torn last line. Returns
    the lines that stay."""
    if not path.exists():
        return []
    kept = {}
    for line in json_lines(path):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and values.get("step", 0) <= step:
            kept[line] = values
    write_text(path, "".join(line + "\n" for line in kept))
    return list(kept.values())


def find_runs(folder: Path) -> list[RunDirectory]:
    """Every run directory at or below a folder, outermost first; evaluations inside a run are not listed apart."""
    if (folder / RECORD).exists():
        return [RunDirectory.open(folder, key=str(folder))]
    if not folder.is_dir():
        return []
    children = sorted((child for child in folder.iterdir() if child.is_dir()), key=_natural)
    return [run for child in children if not child.name.startswith(".") for run in find_runs(child)]


def _natural(path: Path) -> tuple[int, int | str, str]:
    return (0, int(path.name), "") if path.name.isdigit() else (1, path.name, "")
