"""One malformed case, and what became of it when it was tried in a process forked after the imports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 20.0  # then a case counts as hung
SECONDS = 2.0  # that a refusal may take, of the processor: on a busy machine the clock tells of the others


@dataclass(frozen=True)
class Case:
    """Words that must be refused in a folder that `arrange` has spoilt, and what the one line must hold."""

    name: str
    words: tuple[str, ...]
    expected: tuple[str, ...]
    arrange: Callable[[Path], Any] = lambda folder: None


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, both streams, seconds of the processor, most memory in MiB, and the paths that it
    wrote, changed or removed."""

    code: int
    out: str
    err: str
    seconds: float
    peak_mib: float
    touched: tuple[str, ...]


def case(name: str, words: str | Sequence[str], *expected: str, arrange: Callable[[Path], Any] | None = None) -> Case:
    """A case from a command line (split at spaces) or from its words."""
    split = tuple(words.split(" ")) if isinstance(words, str) else tuple(words)
    return Case(name, split, expected, arrange or (lambda folder: None))


def faults(found: Outcome, expected: Sequence[str] = ()) -> list[str]:
    """What is wrong with an answer to bad input; nothing when it was refused in one line with the expected parts."""
    lines = found.err.splitlines()
    wrong = [f"exit code {found.code}"] if found.code != 2 else []
    if "Traceback" in found.err + found.out:
        wrong.append("traceback")
    if len(lines) != 1 or not found.err.startswith("kdrun: "):
        wrong.append(f"{len(lines)} lines")
    if len(found.err) > 1500:
        wrong.append(f"{len(found.err)} characters")
    wrong += [f"no {part!r}" for part in expected if part not in found.err]
    wrong += [f"took {found.seconds:.1f} s"] if found.seconds > SECONDS else []
    return wrong + ([f"wrote {', '.join(found.touched[:3])}"] if found.touched else [])


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and the time of its last change; links are not followed."""
    return {
        str(path.relative_to(folder)): (status.st_size if not path.is_dir() else 0, status.st_mtime_ns)
        for path in folder.rglob("*")
        for status in [path.lstat()]
    }


def attempt(words: Sequence[str], folder: Path, *, arrange: Callable[[Path], Any] = lambda folder: None) -> Outcome:
    """Run `kdrun words` in a forked child whose working directory is `folder`, after `arrange(folder)`."""
    arrange(folder)
    before = listing(folder)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            _become(words, folder, out.fileno(), err.fileno())
        code, seconds, peak_mib = wait(child)
        texts = [_text(stream.fileno()) for stream in (out, err)]
    after = listing(folder)
    touched = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return Outcome(code, *texts, seconds, peak_mib, tuple(touched))


def _become(words: Sequence[str], folder: Path, out: int, err: int) -> None:
    import traceback

    code = 1
    try:
        os.chdir(folder)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        from kdrun.cli import app

        app(list(words), prog_name="kdrun")
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> tuple[int, float, float]:
    """Exit code, seconds of the processor and most memory (MiB) of a child, which is killed when it hangs."""
    deadline, pause = time.monotonic() + LIMIT_S, 0.001
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(pause := min(2 * pause, 0.02))


def _text(number: int) -> str:
    os.lseek(number, 0, os.SEEK_SET)
    with os.fdopen(os.dup(number), encoding="utf-8", errors="backslashreplace") as file:
        return file.read()


# -- spoiling files ----------------------------------------------------------------------------------------------------


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Write a file, its folder first."""

    def arrange(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return arrange


def cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    """Keep the first bytes of a file; a negative number takes that many away."""
    return lambda folder: put(name, (folder / name).read_bytes()[:num_bytes])(folder)


def drop(*names: str) -> Callable[[Path], None]:
    """Remove files or folders."""

    def arrange(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return arrange


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the content of a JSON file: `change` alters it in place, or returns the new one."""

    def arrange(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        changed = change(content)
        put(name, json.dumps(content if changed is None else changed))(folder)

    return arrange


def setting(name: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of a JSON object; a value of `...` removes the key."""

    def change(content: dict[str, Any]) -> None:
        content.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del content[key]

    return edit(name, change)


def together(*arrangements: Callable[[Path], Any]) -> Callable[[Path], None]:
    """One after the other."""

    def arrange(folder: Path) -> None:
        for one in arrangements:
            one(folder)

    return arrange
