"""kdrun plan: the figures of a real run before it, and one line where something is missing."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig

from kdrun.cli import CONF
from kdrun.launch import plan
from tests.conftest import SMALL, read_json

Plan = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def plan_here(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Plan:
    """Run it in this process and in the workspace."""
    monkeypatch.chdir(workspace)

    def run(*words: str, gpu: str | None = None, json: Path | None = None) -> subprocess.CompletedProcess:
        capfd.readouterr()
        code = 0
        try:
            plan(list(words), CONF, gpu=gpu, utilisation=0.35, json=json)
        except SystemExit as error:
            code = int(error.code or 0)
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return run


def test_rows_steps_and_tokens_are_those_that_the_run_records(plan_here: Plan, akl: Path, tmp_path: Path) -> None:
    words = ["loss=akl", *SMALL, "train.max_steps=6"]
    assert plan_here(*words, gpu="h100", json=tmp_path / "run.json").returncode == 0
    record, said = read_json(akl / "run.json"), read_json(tmp_path / "run.json")
    assert said["steps"] == read_json(akl / "summary.json")["steps"]
    assert said["rows"] == record["data"]["rows"]
    assert said["models"]["student"]["parameters"] == record["student_start"]["parameters"]
    assert said["models"]["teacher"]["parameters"] == record["teacher"]["parameters"]
    assert [machine["fits"] for machine in said["machines"]] == [True, True]
    assert plan_here(*words, "train.max_steps=null", "train.epochs=2", json=tmp_path / "all.json").returncode == 0
    assert read_json(tmp_path / "all.json")["scored_tokens"] == 2 * record["data"]["scored_tokens"]


def test_a_teacher_that_is_not_made_yet_is_counted_and_not_made(plan_here: Plan, workspace: Path) -> None:
    done = plan_here(*SMALL, "pair.teacher=outputs/teachers/later")
    assert done.returncode == 0 and "teacher: gpt2" in done.stdout
    assert not (workspace / "outputs" / "teachers" / "later").exists()


def test_processes_share_the_rows_of_a_step_and_the_time_of_gpus(plan_here: Plan, tmp_path: Path) -> None:
    words = ["loss=akl", *SMALL, "train.max_steps=6", "train.batch_size=8"]
    paths = [tmp_path / "one.json", tmp_path / "four.json"]
    assert plan_here(*words, gpu="h100", json=paths[0]).returncode == 0
    assert plan_here(*words, "launch=ddp", "launch.processes=4", gpu="h100", json=paths[1]).returncode == 0
    one, four = (read_json(path) for path in paths)
    assert four["flops"] == one["flops"]
    assert four["machines"][1]["seconds"] == pytest.approx(one["machines"][1]["seconds"] / 4)
    assert four["machines"][1]["kwh"] == pytest.approx(one["machines"][1]["kwh"])
    done = plan_here(*words, "launch=deepspeed", "launch.processes=4")
    assert "of gradients and optimiser each process holds 1/4" in done.stdout


def test_of_a_folder_with_a_config_alone_it_says_what_does_not_fit_and_what_helps(
    plan_here: Plan, tmp_path: Path
) -> None:
    config = LlamaConfig(vocab_size=32000, hidden_size=8192, intermediate_size=28672, num_hidden_layers=1,
                         num_attention_heads=8)  # fmt: skip
    config.save_pretrained(tmp_path)
    done = plan_here(
        "pair=llama", f"pair.student={tmp_path}", f"pair.teacher={tmp_path}", "data=jsonl", "data.path=none.jsonl",
        "data.max_rows=10",
    )  # fmt: skip
    assert done.returncode == 2 and "data.path=none.jsonl" in done.stderr
    done = plan_here(
        "pair=llama", f"pair.student={tmp_path}", f"pair.teacher={tmp_path}", "data=unicode", "data.max_rows=100",
        "train.batch_size=2", "train.micro_batch_size=2", gpu="l4", json=tmp_path / "said.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "an upper bound" in done.stdout and "does not fit on l4" in done.stdout
    there = read_json(tmp_path / "said.json")["machines"][1]
    assert not there["fits"]
    assert "teacher=cached" in there["remedies"]
    assert there["remedies"]["teacher=cached"] < there["bytes"]["peak"]


@pytest.mark.parametrize(
    ("words", "gpu", "said"),
    [
        (["pair=gpt2", "data=unicode"], None, "pair.student=gpt2: its config.json is not on this machine"),
        (["pair=gpt2"], None, "type data.max_rows=N"),
        (["resume=outputs/akl"], None, "resume=:"),
        ([], "abacus", "--gpu=abacus: must be one of a10, "),
    ],
)
def test_what_is_missing_is_one_line_and_exit_2(plan_here: Plan, words: list[str], gpu: str | None, said: str) -> None:
    done = plan_here(*words, gpu=gpu)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
