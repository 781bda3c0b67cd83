"""What the doctor says of the machine; no network."""

import os
import socket
import threading
from pathlib import Path

import pytest

from kdrun.canaries import environment


def test_the_versions_of_the_checkout_are_those_of_its_constraints(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "constraints.txt"
    file.write_text("numpy==0.0.1\nnot-installed==1\ntorch==0.1 ; sys_platform == 'never'\n")
    finding = environment.packages(file)
    assert finding.verdict == "warning"
    assert "1 not as tested: numpy" in finding.measured
    assert f"torch {torch.__version__}" in finding.measured
    assert environment.packages(tmp_path / "none.txt").verdict == "ok", "a wheel has no constraints beside it"


def test_a_place_that_takes_no_file_fails_and_nothing_is_left_in_one_that_does(tmp_path: Path) -> None:
    assert environment.disk(tmp_path / "outputs" / "deeper").verdict in ("ok", "warning")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    finding = environment.disk(tmp_path / "file")
    assert finding.verdict == "FAIL"
    assert "KDRUN_OUTPUTS" in finding.remedy


def test_offline_is_obeyed_and_a_hub_that_is_silent_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "must not be asked")
    assert (environment.hub().verdict, "HF_HUB_OFFLINE" in environment.hub().measured) == ("warning", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(environment, "HUB_WAIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert environment.hub().verdict == "warning", "takes calls and never answers"

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(environment, "HUB_WAIT_S", 30)
        assert environment.hub().verdict == "ok"


def test_a_key_of_wandb_is_noticed_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert environment.wandb("online").verdict == "warning"
    assert "so offline; no key" in environment.wandb("auto").measured
    (tmp_path / "netrc").write_text("machine wandb.example login user password geheim\n")
    finding = environment.wandb("auto")
    assert "so online; a key is there" in finding.measured
    assert "geheim" not in repr(finding)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert environment.wandb("auto").measured.startswith("disabled")


def test_more_threads_than_cores_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(), raising=False)
    assert environment.threads().verdict == "warning"


def test_without_a_compiler_the_doctor_says_what_is_slower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kdrun.native import compiled

    compiled.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert environment.compiler().verdict == "warning"
    compiled.cache_clear()
    monkeypatch.undo()
    assert environment.compiler().verdict == "ok"


def test_extras_that_are_not_installed_come_with_the_words_that_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_installed", lambda name: None if name == "trl" else "1")
    finding = environment.extras()
    assert finding.verdict == "skipped"
    assert "bench without trl" in finding.measured
    assert "pip install 'kdrun[bench]'" in finding.remedy
