"""Fresh processes: exit codes, and the stop at the first optimiser step."""

import time
from pathlib import Path

import pytest

from kdrun.bench.startup import Command

TRAINS_FOR_EVER = """
import json, pathlib, time
folder = pathlib.Path("run"); folder.mkdir()
with open(folder / "metrics.jsonl", "a", buffering=1) as file:
    file.write(json.dumps({"step": 0}) + "\\n")
    file.write(json.dumps({"step": 1}) + "\\n")
    time.sleep(600)
"""


def test_a_run_is_stopped_when_its_metrics_hold_the_first_step_and_can_be_done_again(tmp_path: Path) -> None:
    command = Command(str(tmp_path), ["-c", TRAINS_FOR_EVER], run=tmp_path / "run")
    started = time.monotonic()
    command()
    command()  # run/ is removed before: mkdir would fail otherwise
    assert time.monotonic() - started < 300  # it did not sleep to its end


def test_another_exit_code_than_expected_is_an_error_with_the_last_words(tmp_path: Path) -> None:
    Command(str(tmp_path), ["-c", "raise SystemExit(2)"], code=2)()
    with pytest.raises(RuntimeError, match=r"exit code 1: RuntimeError: so not"):
        Command(str(tmp_path), ["-c", "raise RuntimeError('so not')"])()
