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


def test_an_evaluation_of_a_run_lies_in_the_run_and_a_second_one_beside_it(run: Path, kdrun_here: Kdrun) -> None:
    out = kdrun_here("evaluate", f"run={run}", *QUICK).stdout
    assert "rouge_l" in out
    kdrun_here("evaluate", f"run={run}", *QUICK, "eval.seeds=[1,2]")
    first, second = run / "eval" / "quick", run / "eval" / "quick-2"
    assert read_json(first / "run.json")["status"] == read_json(second / "run.json")["status"] == "done"
    assert "sample/rouge_l_sd" in read_json(second / "summary.json")
    assert {"seed1", "seed2", "greedy"} <= read_lines(second / "examples.jsonl")[0].keys()
    files = {path.name for path in first.iterdir()}
    assert files == {"config.yaml", "examples.jsonl", "log.txt", "protocol.json", "run.json", "summary.json"} - (
        set() if (first / "log.txt").exists() else {"log.txt"}
    )


def test_the_runs_teacher_is_evaluated_with_role_teacher(run: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    kdrun_here("evaluate", f"run={run}", "role=teacher", *QUICK, "hydra.run.dir=outputs/of-teacher")
    kdrun_here("evaluate", "run=outputs/teachers/tiny-unicode", *QUICK, "hydra.run.dir=outputs/of-teacher-run")
    one, other = (read_json(workspace / "outputs" / name / "summary.json") for name in ("of-teacher", "of-teacher-run"))
    assert one["nll"] == other["nll"]
    assert "fkl" not in one


def test_any_model_folder_is_evaluated_on_ones_own_lines_with_several_references(
    run: Path, kdrun_here: Kdrun, workspace: Path
) -> None:
    lines = [{"instruction": f"Say {i}.", "output": [f"number {i}", f"it is {i}"]} for i in range(60)]
    path = workspace / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kdrun_here(
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


def test_suites_are_scored_apart_each_in_a_folder_of_its_own(run: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    suites = workspace / "suites"
    for name in ("vicuna", "sinst/11_"):
        (suites / name).mkdir(parents=True)
        lines = [{"instruction": f"{name} {i}?", "input": "", "output": [f"a {i}", f"b {i}"]} for i in range(4)]
        (suites / name / "valid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (workspace / "mine.jsonl").write_text(json.dumps({"instruction": "Why?", "input": "", "output": "So."}) + "\n")
    words = ["eval.suites=[vicuna,sni,mine.jsonl]", "eval.suites_path=suites", "hydra.run.dir=outputs/suites"]
    done = kdrun_here("evaluate", f"run={run}", *QUICK, *words)
    assert "the published set 80" in done.stderr, "a copy of another size says so"
    folder = workspace / "outputs" / "suites"
    whole = read_json(folder / "summary.json")
    for suite, rows in (("vicuna", 4), ("sni", 4), ("mine", 1)):
        summary = read_json(folder / suite / "summary.json")
        assert summary["num_examples"] == rows == len(read_lines(folder / suite / "examples.jsonl"))
        assert {f"{suite}/{name}": value for name, value in summary.items()}.items() <= whole.items()
        assert read_json(folder / suite / "protocol.json")["suite"] == suite
    refused = kdrun_here("evaluate", f"run={run}", *QUICK, "eval.suites=[vicunna]", check=False)
    assert refused.returncode == 2
    assert "eval.suites=[vicunna]: must be of dolly" in refused.stderr


def test_scores_are_stored_for_every_example_and_the_summary_is_their_mean(run: Path) -> None:
    examples, summary = (
        read_lines(run / "eval" / "quick-2" / "examples.jsonl"),
        read_json(run / "eval" / "quick-2" / "summary.json"),
    )
    corpus = {f"distinct_{n}" for n in (1, 2, 3, 4)} | {"distinct_words", "ead"}
    for key, value in summary.items():
        decoding, _, metric = key.partition("/")
        if not metric or metric.removesuffix("_sd") in corpus:
            continue
        if metric == "prompt_self_bleu":
            of_each = [example[metric] for example in examples]
        elif metric.endswith("_sd"):
            continue
        elif decoding == "greedy":
            of_each = [example["greedy"][metric] for example in examples]
        else:
            of_each = [example[seed][metric] for example in examples for seed in ("seed1", "seed2")]
        assert value == pytest.approx(sum(of_each) / len(of_each)), key
    rouge = {"rouge_1", "rouge_2", "rouge_l", "exact_match", "exact_match_normalised", "words", "tokens", "self_bleu"}
    assert {f"greedy/{name}" for name in rouge | corpus} <= summary.keys()
    agreement = {"nll", "perplexity", "bits_per_byte", "lm_loss", "fkl", "rkl", "jsd", "tvd", "top1_agreement"}
    assert agreement | {"fkl_head", "fkl_tail", "rkl_head", "rkl_tail"} <= summary.keys()
    assert summary["fkl_head"] + summary["fkl_tail"] == pytest.approx(summary["fkl"])


def test_a_bartscore_checkpoint_is_used_and_declared(run: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    from tests.evaluation.test_bartscore import make_bart, save_tokenizer

    make_bart().save_pretrained(workspace / "bart")
    save_tokenizer(workspace / "bart", start=True, max_length=None)
    words = [f"run={run}", *QUICK, "eval.bartscore_model=bart", "hydra.run.dir=outputs/barted"]
    kdrun_here("evaluate", *words)
    folder = workspace / "outputs" / "barted"
    assert read_json(folder / "summary.json")["greedy/bartscore_f1"] < 0
    assert len(read_json(folder / "protocol.json")["bartscore"]["weights_sha256"]) == 64
    refused = kdrun_here("evaluate", f"run={run}", *QUICK, f"eval.bartscore_model={run}/student", check=False)
    assert refused.returncode == 2
    assert "eval.bartscore_model=" in refused.stderr


@pytest.mark.slow
def test_harness_tasks_of_ones_own_are_part_of_an_evaluation(run: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    pytest.importorskip("lm_eval")
    from tests.evaluation.test_harness import ROWS, TASK

    folder = workspace / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "mine.yaml").write_text(TASK.format(name="kd_mine", data=folder / "rows.jsonl"))
    kdrun_here("evaluate", f"run={run}", *QUICK, "eval.harness=[kd_mine]", "eval.harness_path=tasks",
          "eval.greedy=false", "eval.seeds=[]", "hydra.run.dir=outputs/harnessed")  # fmt: skip
    summary = read_json(workspace / "outputs" / "harnessed" / "summary.json")
    records = read_lines(workspace / "outputs" / "harnessed" / "harness.jsonl")
    assert summary["harness/kd_mine/acc"] == pytest.approx(sum(record["acc"] for record in records) / len(ROWS))


def test_the_protocol_is_recorded_in_full(run: Path) -> None:
    protocol = read_json(run / "eval" / "quick" / "protocol.json")
    assert protocol["settings"]["top_k"] == 0
    assert protocol["settings"]["no_repeat_ngram_size"] == 0
    assert protocol["settings"]["batch_size"] == 128
    assert protocol["data"]["template"] == "plain"
    assert {"rouge", "fingerprint", "dropped"} <= protocol.keys()


def test_a_run_without_a_model_is_refused(kdrun_here: Kdrun, workspace: Path) -> None:
    folder = workspace / "outputs" / "modelless"
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "failed"}')
    done = kdrun_here("evaluate", "run=outputs/modelless", check=False)
    assert done.returncode == 2
    assert "has no student/" in done.stderr
    assert "failed" in done.stderr
