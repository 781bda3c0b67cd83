"""A forked process is one of its own in all that tests look at."""

import os
import signal
from pathlib import Path

from tests.forked import Forked

SAYS = "import os, sys\nprint(os.getcwd(), os.environ['WORD'], sys.argv[1])\nprint('no', file=sys.stderr)\nsys.exit(3)"
ENDS = "import atexit, signal\natexit.register(print, 'at exit')\nprint(signal.getsignal(2).__name__)\n1 / 0"


def test_it_has_its_own_folder_environment_words_streams_and_exit_code(tmp_path: Path) -> None:
    done = Forked(SAYS, "word", cwd=tmp_path, environment={"WORD": "mine"}).completed()
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{tmp_path} mine word\n", "no\n")
    assert Path.cwd() != tmp_path and "WORD" not in os.environ


def test_it_ends_as_an_interpreter_does_with_a_traceback_and_what_is_left_for_the_exit(tmp_path: Path) -> None:
    done = Forked(ENDS, cwd=tmp_path).completed()
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert done.stdout == "default_int_handler\nat exit\n"


def test_a_signal_reaches_it_and_is_its_exit_code(tmp_path: Path) -> None:
    process = Forked("import time; time.sleep(100)", cwd=tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.poll() == -signal.SIGKILL
