"""W&B as a mirror: no prompt, no hang, nothing lost when it is not there."""

from pathlib import Path

import pytest

from kdrun.runs.tracker import Tracker

ABOUT = {
    "project": "kdrun",
    "entity": None,
    "name": "n",
    "group": "g",
    "job_type": "train",
    "tags": ["akl"],
    "config": {"mu": 0.5},
}


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def test_without_a_key_auto_is_offline_and_asks_nothing(no_account: Path) -> None:
    tracker = Tracker("auto", directory=no_account, **ABOUT)
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({"valid/fkl": 0.5})
    files = list((no_account / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0


def test_a_dead_server_costs_a_warning_and_the_run_goes_on_offline(
    no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    tracker = Tracker("auto", directory=no_account, **ABOUT)
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({})
    assert list((no_account / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_malformed_key_does_not_end_the_run(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    tracker = Tracker("auto", directory=no_account, **ABOUT)
    tracker.finish({})
    assert list((no_account / "wandb").glob("offline-run-*"))


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker("disabled", directory=tmp_path, **ABOUT)
    tracker.log({"a": 1.0}, step=1)
    tracker.finish({})
    assert tracker.run_id is None
    assert not list(tmp_path.iterdir())
