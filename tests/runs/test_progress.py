"""Progress without a terminal: a plain line now and then, with the time left."""

import pytest

from kdrun.runs import progress as module
from kdrun.runs.progress import progress


def test_a_line_every_ten_seconds_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("train", 100) as task:
        for _ in range(25):
            now += 1.0
            task.show("loss 1.0")
            task()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train: 10/100, 90 s left  loss 1.0", "train: 20/100, 80 s left  loss 1.0"]


def test_what_an_earlier_attempt_did_does_not_count_towards_the_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("train", 100, done=80) as task:
        now = 10.0
        task(10)
    assert capsys.readouterr().err.startswith("train: 90/100, 10 s left")
