"""kdrun in a process of its own that starts in no time: forked from one that has torch and transformers already.

It has its own pid, working directory, environment and streams, and imports kdrun itself; only the five seconds of
importing others' packages are spent once a worker. What hangs on a fresh interpreter is tested in one (fresh=True).
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["transformers.models.gpt2.modeling_gpt2", "accelerate", "hydra.main", "pydantic"])


def run_forked(*words: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """What `python -m kdrun words` prints and exits with."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        process = SERVER.Process(target=_become_kdrun, args=(words, cwd, environment, streams))
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(words, code or 0, *(stream.read_text() for stream in streams))


def _become_kdrun(words: tuple[str, ...], cwd: Path, environment: dict[str, str], streams: list[Path]) -> None:
    gc.freeze()  # a search for garbage would copy every page of the parent
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    with suppress(ImportError):
        import sitecustomize  # noqa: F401  # as a fresh interpreter does
    sys.argv = ["kdrun", *words]
    try:
        runpy.run_module("kdrun", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out
