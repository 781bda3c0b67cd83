"""W&B as a mirror: no prompt, no hang, nothing lost when it is not there."""

import json
import logging
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdrun.runs import tracker as tracker_module
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
    import wandb

    wandb.teardown()  # it reads the environment, the server's address too, once a process
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


def offline_folder(folder: Path) -> Path:
    """The folder of the one offline run under `folder`."""
    (found,) = (folder / "wandb").glob("offline-run-*")
    return found


def records(folder: Path) -> list[dict]:
    """Every record of an offline run, read back by W&B's own program."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline_folder(folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(lines: list[dict]) -> dict[int, dict]:
    return {line["history"]["step"]["num"]: line["history"]["item"] for line in lines if line["type"] == "history"}


def summary(lines: list[dict]) -> dict:
    merged: dict = {}
    for line in lines:
        merged |= line["summary"].get("update", {}) if line["type"] == "summary" else {}
    return merged


def table_files(folder: Path) -> dict[str, dict]:
    """Content of the tables of an offline run, by the start of their names."""
    media = offline_folder(folder) / "files" / "media" / "table"
    return {
        str(path.relative_to(media)).rsplit("_", 2)[0]: json.loads(path.read_text())
        for path in media.rglob("*.table.json")
    }


def test_an_offline_file_holds_group_tags_config_curve_summary_table_and_picture(no_account: Path) -> None:
    from PIL import Image

    Image.new("RGB", (3, 2)).save(no_account / "curves.png")
    tracker = Tracker("offline", directory=no_account, **ABOUT)
    for step, loss in ((1, 3.0), (10, 2.0), (20, 1.5)):
        tracker.log({"train/loss": loss}, step=step)
    header = ["instruction", "greedy", "greedy ROUGE-L"]
    rows = [["Say \u00e9", "two\nlines", 41.5], ["Say b", "", None]]
    tracker.table("eval/quick", header, rows)
    tracker.log({"valid/fkl": 0.25}, step=20)
    tracker.image("curves", no_account / "curves.png")
    tracker.finish({"eval/greedy/rouge_l": 20.75, "valid/fkl": 0.25})
    lines = records(no_account)
    run = next(line["run"] for line in lines if line["type"] == "run")
    assert {key: run[key] for key in ("project", "run_group", "job_type", "tags", "display_name")} == {
        "project": "kdrun", "run_group": "g", "job_type": "train", "tags": ["akl"], "display_name": "n",
    }  # fmt: skip
    assert run["config"]["update"]["mu"] == 0.5
    steps = history(lines)
    assert [(step, item["train/loss"]) for step, item in steps.items()] == [(1, 3.0), (10, 2.0), (20, 1.5)]
    # The table made no step of its own: what is logged after it at the same step is still taken.
    assert steps[20]["valid/fkl"] == 0.25 and steps[20]["eval/quick.nrows"] == 2
    assert steps[20]["curves._type"] == "image-file"
    values = summary(lines)
    assert (values["eval/greedy/rouge_l"], values["valid/fkl"], values["train/loss"]) == (20.75, 0.25, 1.5)
    assert table_files(no_account) == {"eval/quick": {"columns": header, "data": rows}}
    assert next(line["exit"] for line in lines if line["type"] == "exit").get("exit_code", 0) == 0


def test_a_report_is_a_run_of_its_own_with_tables_and_figures(no_account: Path) -> None:
    from PIL import Image

    Image.new("RGB", (3, 2)).save(no_account / "mu.png")
    tracker = Tracker("offline", directory=no_account, **{**ABOUT, "job_type": "report"})
    # A column of one type in no sense: names, numbers and gaps.
    tracker.report({"main": (["mu", "ROUGE-L"], [[0.5, 20.1], ["teacher", None]])}, {"mu": no_account / "mu.png"})
    tracker.finish({})
    lines = records(no_account)
    assert next(line["run"] for line in lines if line["type"] == "run")["job_type"] == "report"
    assert table_files(no_account) == {
        "report/main": {"columns": ["mu", "ROUGE-L"], "data": [[0.5, 20.1], ["teacher", None]]}
    }
    assert history(lines)[0]["report/mu._type"] == "image-file"


def test_a_table_or_picture_that_is_refused_costs_a_warning_and_metrics_go_on(
    no_account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker("offline", directory=no_account, **ABOUT)
    with caplog.at_level(logging.WARNING):
        tracker.table("ragged", ["a", "b"], [[1, 2], [3]])
        tracker.image("none", no_account / "none.png")
    said = [record.getMessage() for record in caplog.records if record.name == "kdrun.runs.tracker"]
    assert [text.split(" (")[0] for text in said] == [
        "W&B did not take the table ragged",
        f"W&B did not take the picture {no_account / 'none.png'}",
    ]
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({})
    assert history(records(no_account))[1]["train/loss"] == 1.0


def test_a_failed_run_is_marked_so(no_account: Path) -> None:
    tracker = Tracker("offline", directory=no_account, **ABOUT)
    tracker.finish({}, failed=True)
    assert next(line["exit"] for line in records(no_account) if line["type"] == "exit")["exit_code"] == 1


def test_keys_of_the_environment_stand_in_no_file(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account, judge = "a1b2" * 10, "sk-judge-0123456789"
    monkeypatch.setenv("WANDB_API_KEY", account)
    monkeypatch.setenv("OPENAI_API_KEY", judge)
    tracker = Tracker("offline", directory=no_account, **ABOUT)
    tracker.table("eval/quick", ["a"], [["b"]])
    tracker.finish({"x": 1.0})
    files = [path for path in no_account.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert account.encode() not in content and judge.encode() not in content, path
    assert account not in json.dumps(records(no_account))


def test_a_server_that_never_answers_costs_a_warning_and_the_run_goes_on_offline(
    no_account: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take_calls() -> None:
            while True:
                try:
                    taken.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=take_calls, daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(tracker_module, "START_TIMEOUT_S", 2)
        with caplog.at_level(logging.WARNING):
            tracker = Tracker("online", directory=no_account, **ABOUT)
            tracker.log({"train/loss": 1.0}, step=1)
            tracker.finish({})
        server.shutdown(socket.SHUT_RDWR)
    assert taken, "the server was never asked"
    assert "logging offline" in caplog.text
    assert history(records(no_account))[1]["train/loss"] == 1.0


def test_a_server_that_stalls_after_the_start_holds_up_no_metric_and_the_end_for_the_finish_time_out_only(
    no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = {"id": "b", "name": "r", "project": {"id": "p", "name": "kdrun", "entity": {"id": "e", "name": "me"}}}
    taken = {"upsertBucket": {"bucket": bucket, "inserted": True}}
    stalled, answered, over = [], [], threading.Event()

    class Stalling(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
            if not (started := "UpsertBucket" in asked[:200]):
                stalled.append(self.path)
                over.wait(120)
                answered.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": taken if started else None}).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(tracker_module, "FINISH_TIMEOUT_S", 1)
        tracker = Tracker("online", directory=no_account, **ABOUT)
        for step in range(1, 501):
            tracker.log({"train/loss": float(step)}, step=step)
        tracker.finish({"x": 1.0})
        waited_for = list(answered)
        over.set()
        server.shutdown()
    assert any("file_stream" in path for path in stalled), "the server was never asked to take metrics"
    assert not waited_for, "the end came before any answer"
    (file,) = (no_account / "wandb").glob("run-*/*.wandb")
    assert file.stat().st_size > 10_000, "what was logged is on the disk, for `wandb sync`"
