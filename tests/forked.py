"""Processes of their own that start in no time: forked from one that has torch and transformers already.

Such a process has its own pid, environment, working directory and streams, and imports kdrun itself; only the five
seconds of importing others' packages are spent once a worker. What hangs on a fresh interpreter, or starts joblib's
workers (they are waited for in another order at its end), is tested in one.
"""

import atexit
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["transformers.models.gpt2.modeling_gpt2", "accelerate", "hydra.main", "pydantic"])
KDRUN = "import runpy; runpy.run_module('kdrun', run_name='__main__', alter_sys=True)"


class Forked:
    """`python -c program words`, with the methods of subprocess.Popen that tests use; its streams are files."""

    def __init__(self, program: str, *words: str, cwd: Path, environment: dict[str, str] | None = None) -> None:
        self.words = words
        self.folder = tempfile.TemporaryDirectory()
        self.streams = [Path(self.folder.name, name) for name in ("out", "err")]
        for stream in self.streams:
            stream.touch()
        environment = dict(os.environ) if environment is None else environment
        self.process = SERVER.Process(target=_become, args=(program, words, cwd, environment, self.streams))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, sign: signal.Signals) -> None:
        os.kill(self.pid, sign)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        out, err = (stream.read_text() for stream in self.streams)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.words, timeout or 0, out, err)
        return out, err

    def completed(self) -> subprocess.CompletedProcess:
        out, err = self.communicate()
        return subprocess.CompletedProcess(self.words, self.returncode, out, err)

    @property
    def returncode(self) -> int:
        return self.process.exitcode


def _become(program: str, words: tuple[str, ...], cwd: Path, environment: dict[str, str], streams: list[Path]) -> None:
    gc.freeze()  # a search for garbage would copy every page of the parent
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    with suppress(ImportError):
        import sitecustomize  # noqa: F401  # as a fresh interpreter does
    sys.argv = ["kdrun", *words]
    try:
        exec(program, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out
