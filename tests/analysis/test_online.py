"""Rows from W&B, of objects shaped like those of its public API; no account and no network here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdrun.analysis.curves import read_curves
from kdrun.analysis.online import fetch_runs, online_row, refuse_offline_folders, save_curves
from kdrun.errors import UserError


def run(**changes: Any) -> SimpleNamespace:
    """As wandb.apis.public.Run shows a finished training."""
    return SimpleNamespace(**{
        "entity": "me", "project": "kdrun", "id": "ab12", "name": "tiny-akl-3", "group": "sweep", "state": "finished",
        "job_type": "train",
        "config": {"name": "tiny-akl", "seed": 3, "loss": {"name": "akl", "mu": 0.5}, "eval": {"name": "quick"}},
        "summary": {"_runtime": 9, "train_s": 60.0, "valid/nll": 2.5, "eval/nll": 2.0, "eval/texts": {"_type": ""}},
        "scan_history": lambda: iter([
            {"_step": 0, "_timestamp": 1.0, "valid/nll": 5.0}, {"_step": 10, "valid/nll": 2.5, "table": {}},
        ]),
        **changes,
    })  # fmt: skip


def test_settings_and_metrics_are_named_as_those_of_a_run_directory() -> None:
    row = online_row(run())
    assert (str(row.folder), row.label, row.status) == ("wandb:me/kdrun/ab12", "tiny-akl", "done")
    assert row.settings["loss.mu"] == 0.5
    assert row.metrics == {"train_s": 60.0, "valid/nll": 2.5, "quick/nll": 2.0}
    assert row.evaluations == {}


@pytest.mark.parametrize(
    ("state", "status"), [("crashed", "failed"), ("killed", "interrupted"), ("running", "running")]
)
def test_states_are_those_of_a_run_directory(state: str, status: str) -> None:
    assert online_row(run(state=state)).status == status


def test_an_evaluation_run_names_its_metrics_after_itself() -> None:
    row = online_row(run(job_type="evaluate", summary={"nll": 2.0, "greedy/rouge_l": 30.0}))
    assert row.metrics == {"quick/nll": 2.0, "quick/greedy/rouge_l": 30.0}


def test_the_history_becomes_curves(tmp_path: Path) -> None:
    save_curves(run(), tmp_path / "0")
    assert read_curves(tmp_path / "0") == {"valid/nll": [(0, 5.0), (10, 2.5)]}


def test_no_key_and_words_that_mean_no_project_are_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="needs a key; type wandb login, or set WANDB_API_KEY"):
        fetch_runs("wandb:me/kdrun")
    for source in ("wandb:kdrun", "wandb:me/kdrun/group/more", "wandb:me//group"):
        with pytest.raises(UserError, match="must be wandb:ENTITY/PROJECT"):
            fetch_runs(source)


def test_a_server_that_does_not_answer_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Port 9 of this machine refuses at once."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("kdrun.analysis.online.WAIT_S", 2)
    with pytest.raises(UserError, match=r"^wandb:me/kdrun: W&B did not answer \("):
        fetch_runs("wandb:me/kdrun")


def test_a_folder_that_wandb_wrote_offline_is_no_source(tmp_path: Path) -> None:
    folder = tmp_path / "akl" / "wandb" / "offline-run-20260101-x"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=f"give the run directory, {tmp_path / 'akl'}"):
        refuse_offline_folders([folder])
    refuse_offline_folders([tmp_path / "akl"])
