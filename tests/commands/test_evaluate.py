"""kdrun evaluate: a run, its teacher, any model folder; several references; nothing overwritten."""

import json
from pathlib import Path

import pytest

from tests.conftest import SMALL, Kdrun, read_json, read_lines

QUICK = ["eval.num_examples=5", "eval.max_new_tokens=4", "eval.bertscore=false", "track.mode=disabled"]


@pytest.fixture(scope="module")
def run(workspace: Path) -> Path:
    from tests.conftest import run_kdrun

    run_kdrun(
        "train",
        "loss=fkl",
        *SMALL,
        "train.max_steps=2",
        "evaluate=false",
        "hydra.run.dir=outputs/evaluated",
        cwd=workspace,
    )
    return workspace / "outputs" / "evaluated"


def test_an_evaluation_of_a_run_lies_in_the_run_and_a_second_one_beside_it(run: Path, kdrun: Kdrun) -> None:
    out = kdrun("evaluate", f"run={run}", *QUICK).stdout
    assert "greedy/rouge_l" in out
    kdrun("evaluate", f"run={run}", *QUICK, "eval.seeds=[1,2]")
    first, second = run / "eval" / "quick", run / "eval" / "quick-2"
    assert read_json(first / "run.json")["status"] == read_json(second / "run.json")["status"] == "done"
    assert "sample/rouge_l_sd" in read_json(second / "summary.json")
    assert {"seed1", "seed2", "greedy"} <= read_lines(second / "examples.jsonl")[0].keys()
    files = {path.name for path in first.iterdir()}
    assert files == {"config.yaml", "examples.jsonl", "log.txt", "protocol.json", "run.json", "summary.json"} - (
        set() if (first / "log.txt").exists() else {"log.txt"}
    )


def test_the_runs_teacher_is_evaluated_with_role_teacher(run: Path, kdrun: Kdrun, workspace: Path) -> None:
    kdrun("evaluate", f"run={run}", "role=teacher", *QUICK, "hydra.run.dir=outputs/of-teacher")
    kdrun("evaluate", "run=outputs/teachers/tiny-unicode", *QUICK, "hydra.run.dir=outputs/of-teacher-run")
    one, other = (read_json(workspace / "outputs" / name / "summary.json") for name in ("of-teacher", "of-teacher-run"))
    assert one["nll"] == other["nll"]
    assert "fkl" not in one


def test_any_model_folder_is_evaluated_on_ones_own_lines_with_several_references(
    run: Path, kdrun: Kdrun, workspace: Path
) -> None:
    lines = [{"instruction": f"Say {i}.", "output": [f"number {i}", f"it is {i}"]} for i in range(60)]
    path = workspace / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kdrun(
        "evaluate", f"student={run}/student", "teacher=outputs/teachers/tiny-unicode",
        "data=jsonl", f"data.path={path}",
        f"data.valid_path={path}", f"data.test_path={path}", "data.template=plain", "data.max_tokens=64",
        "data.max_prompt_tokens=32", *QUICK, "hydra.run.dir=outputs/own",
    )  # fmt: skip
    summary = read_json(workspace / "outputs" / "own" / "summary.json")
    assert summary["num_examples"] == 5
    assert summary["fkl"] > 0
    examples = read_lines(workspace / "outputs" / "own" / "examples.jsonl")
    assert all(len(example["references"]) == 2 for example in examples)


def test_the_protocol_is_recorded_in_full(run: Path) -> None:
    protocol = read_json(run / "eval" / "quick" / "protocol.json")
    assert protocol["settings"]["top_k"] == 0
    assert protocol["settings"]["no_repeat_ngram_size"] == 0
    assert protocol["settings"]["batch_size"] == 128
    assert protocol["data"]["template"] == "plain"
    assert {"rouge", "fingerprint", "dropped"} <= protocol.keys()


def test_a_run_without_a_model_is_refused(kdrun: Kdrun, workspace: Path) -> None:
    folder = workspace / "outputs" / "modelless"
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "failed"}')
    done = kdrun("evaluate", "run=outputs/modelless", check=False)
    assert done.returncode == 2
    assert "has no student/" in done.stderr
    assert "failed" in done.stderr
