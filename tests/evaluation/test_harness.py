"""lm-evaluation-harness on a tiny GPT-2 and local tasks, against log-likelihoods summed by hand; their code never runs.

The library is an extra: what needs it is skipped by name without it.
"""

import importlib.util
import json
import logging
import math
import os
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from kdrun.errors import UserError
from kdrun.evaluation.harness import check_harness, fetch_harness, run_harness
from kdrun.models.scratch import make_model, train_tokenizer

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra is not installed: pip install 'kdrun[harness]'"
)

ROWS = [
    {"q": f"What is {i} and {i}?", "choices": [str(2 * i), f"{3 * i + 1} or more", "none of them"], "answer": i % 3}
    for i in range(10)
]
TASK = """\
task: {name}
tag: kd_tag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}},
  {{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    tokenizer = train_tokenizer([json.dumps(row) for row in ROWS], vocab_size=300)
    model = make_model(vocab_size=300, context=64, layers=1, width=16, heads=2, end_id=tokenizer.eos_token_id, seed=3)
    return model, tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tasks kd_mc and kd_other, both tagged kd_tag."""
    if importlib.util.find_spec("datasets"):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("kd_mc", "kd_other"):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return tasks


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """The sum of log p of the continuation's tokens, in nats."""
    import torch

    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        log_p_LV = model(ids).logits[0].double().log_softmax(-1)
    return sum(log_p_LV[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


@needs_library
def test_accuracy_and_its_error_are_those_of_log_likelihoods_summed_by_hand(pair: Any, folder: Path) -> None:
    model, tokenizer = pair
    result = run_harness(model, tokenizer, ["kd_mc"], batch_size=4, include_path=str(folder))
    rights, norm_rights = [], []
    for row, example in zip(ROWS, result.examples["kd_mc"], strict=True):
        sums = [log_likelihood(model, tokenizer, f"{row['q']}\nAnswer:", f" {choice}") for choice in row["choices"]]
        assert [response[0] for response in example["responses"]] == pytest.approx(sums, abs=1e-4)
        per_letter = [value / len(choice) for value, choice in zip(sums, row["choices"], strict=True)]
        rights.append(float(sums.index(max(sums)) == row["answer"]))
        norm_rights.append(float(per_letter.index(max(per_letter)) == row["answer"]))
        assert (example["acc"], example["acc_norm"]) == (rights[-1], norm_rights[-1])
        assert (example["doc"], example["target"]) == (row, row["answer"])
    assert 0 < sum(rights) < len(rights), "a test of all right or all wrong shows little"
    assert result.summary == pytest.approx(
        {
            "harness/kd_mc/acc": statistics.fmean(rights),
            "harness/kd_mc/acc_stderr": statistics.stdev(rights) / math.sqrt(len(rights)),
            "harness/kd_mc/acc_norm": statistics.fmean(norm_rights),
            "harness/kd_mc/acc_norm_stderr": statistics.stdev(norm_rights) / math.sqrt(len(rights)),
        }
    )
    assert {type(value) for value in result.summary.values()} == {float}
    protocol = result.protocol["tasks"]["kd_mc"]
    assert (protocol["num_examples"], protocol["num_available"], protocol["num_fewshot"]) == (10, 10, 0)
    assert result.protocol["truncated"] == 0
    json.dumps([result.summary, result.examples, result.protocol], allow_nan=False)


@needs_library
def test_a_tag_names_its_tasks_and_a_limit_takes_the_first_examples(pair: Any, folder: Path) -> None:
    result = run_harness(*pair, ["kd_tag", "kd_mc"], batch_size=4, include_path=str(folder), limit=4)
    assert set(result.examples) == {"kd_mc", "kd_other"}
    assert [example["index"] for example in result.examples["kd_mc"]] == [0, 1, 2, 3]
    assert result.examples["kd_mc"] == result.examples["kd_other"]
    assert result.protocol["limit"] == 4
    protocols = result.protocol["tasks"]
    assert protocols["kd_mc"]["fingerprint"] == protocols["kd_other"]["fingerprint"]


@needs_library
def test_a_group_has_its_own_mean_and_a_generating_task_its_greedy_text(pair: Any, folder: Path) -> None:
    import torch

    model, tokenizer = pair
    path = folder / "kd_mc.yaml"
    generating = path.read_text().replace("task: kd_mc", "task: kd_text").replace("multiple_choice", "generate_until")
    generating = generating[: generating.index("doc_to_choice")] + (
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "generation_kwargs: {until: ['<|endoftext|>'], max_gen_toks: 4, do_sample: false}\n"
    )
    (folder / "kd_text.yaml").write_text(generating)
    (folder / "kd_all.yaml").write_text(
        "group: kd_all\ntask: [kd_mc, kd_other]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    result = run_harness(model, tokenizer, ["kd_all", "kd_text"], batch_size=4, include_path=str(folder), limit=5)
    assert result.summary["harness/kd_all/acc"] == pytest.approx(
        (result.summary["harness/kd_mc/acc"] + result.summary["harness/kd_other/acc"]) / 2
    )
    for row, example in zip(ROWS, result.examples["kd_text"], strict=False):
        prompt = tokenizer(f"{row['q']}\nAnswer:", return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**prompt, do_sample=False, max_new_tokens=4)[0, prompt["input_ids"].shape[1] :]
        assert example["responses"] == [tokenizer.decode(ids, skip_special_tokens=True)]
        assert example["exact_match"] == float(example["responses"][0] == str(row["answer"]))


@needs_library
def test_the_process_and_the_model_are_left_as_they_were(pair: Any, folder: Path, capfd: Any) -> None:
    import numpy as np
    import torch

    model, tokenizer = pair
    model.train()
    pads = tokenizer.pad_token
    tokenizer.pad_token = None
    logger = logging.getLogger("lm_eval")
    before = dict(os.environ), logger.level, logger.propagate, list(logger.handlers), logging.root.handlers[:]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    capfd.readouterr()
    run_harness(model, tokenizer, ["kd_mc"], batch_size=4, include_path=str(folder))
    assert "git" not in "".join(capfd.readouterr())
    assert before == (dict(os.environ), logger.level, logger.propagate, list(logger.handlers), logging.root.handlers)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert model.training and tokenizer.pad_token is None
    tokenizer.pad_token = pads
    model.eval()


@needs_library
def test_requests_longer_than_the_context_are_counted(
    pair: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "kd_mc.yaml"
    path.write_text(path.read_text().replace("{{q}}", "{{q}} " + "and so on " * 40))
    result = run_harness(*pair, ["kd_mc"], batch_size=4, include_path=str(folder), limit=2)
    assert result.protocol["truncated"] == 6  # two questions of three choices
    assert "6 requests were longer" in caplog.text


@needs_library
def test_templates_are_rendered_in_a_sandbox(pair: Any, folder: Path, tmp_path: Path) -> None:
    from jinja2.exceptions import SecurityError

    path, mark = folder / "kd_mc.yaml", tmp_path / "mark"
    escape = "{{cycler.__init__.__globals__.os.mkdir('" + str(mark) + "')}}"
    path.write_text(path.read_text().replace("{{q}}", escape))
    with pytest.raises(SecurityError):
        run_harness(*pair, ["kd_mc"], batch_size=4, include_path=str(folder))
    assert not mark.exists()


@needs_library
@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("doc_to_text: !function code.text\n", ["extra.yaml:2", "!function would run code"]),
        ("metric_list: [{metric: !function code.f}]\n", ["extra.yaml:2", "!function would run code"]),
        ("class: code.Task\n", ["extra.yaml", "class would run code"]),
        ("metric_list: [{metric: acc, hf_evaluate: true}]\n", ["extra.yaml", "hf_evaluate would run code"]),
        ("include: base\n", ["base:1", "!function would run code"]),
        ("include: gone\n", ["gone", "cannot be read"]),
        ("include: ../base\n", ["extra.yaml", "outside of eval.harness_path"]),
        ("include: /etc/hostname\n", ["extra.yaml", "outside of eval.harness_path"]),
        ("include: extra.yaml\n", ["extra.yaml", "includes itself"]),
        ("dataset_kwargs: {data_files: {test: [gone.jsonl]}}\n", ["extra.yaml", "gone.jsonl", "not there"]),
        ("}\n", ["extra.yaml", "cannot be read as YAML"]),
    ],
)
def test_task_files_that_would_run_code_or_are_broken_are_refused_before_the_library_is_imported(
    folder: Path, addition: str, words: list[str]
) -> None:
    (folder / "code.py").write_text("raise SystemExit('this must never run')\n")
    (folder / "base").write_text("process_docs: !function code.docs\n")
    (folder / "extra.yaml").write_text("task: extra\n" + addition)
    with pytest.raises(UserError) as error:
        check_harness(["kd_mc"], str(folder))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@needs_library
def test_a_metric_that_the_library_would_fetch_is_refused(pair: Any, folder: Path) -> None:
    path = folder / "kd_mc.yaml"
    path.write_text(path.read_text().replace("metric: acc,", "metric: ./my_metric,"))
    with pytest.raises(UserError, match=r"metric \./my_metric is not one of"):
        run_harness(*pair, ["kd_mc"], batch_size=4, include_path=str(folder))


@needs_library
@pytest.mark.parametrize(
    ("tasks", "path", "words"),
    [
        (["winogrand"], None, ["eval.harness=[winogrand]", "winogrande"]),
        (["kd_mk"], "tasks", ["eval.harness=[kd_mk]", "eval.harness_path=", "kd_mc"]),
        (["kd_mc"], None, ["eval.harness=[kd_mc]", "eval.harness_path=null"]),
        (["kd_mc"], "nowhere", ["eval.harness_path=", "nowhere", "no such folder"]),
    ],
)
def test_unknown_tasks_are_refused_in_one_line(
    folder: Path, tasks: list[str], path: str | None, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        check_harness(tasks, path and str(folder.parent / path))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@needs_library
def test_tasks_of_the_papers_and_of_ones_own_are_known_together(folder: Path) -> None:
    own = ["kd_mc", "kd_tag"]
    for tasks, path in ((["winogrande", "openbookqa", "boolq", "arc", "arc_easy", *own], str(folder)),
                        (["hellaswag", "mmlu"], None)):  # fmt: skip
        assert check_harness(tasks, path) is None, "no complaint"


@needs_library
def test_without_the_hub_a_task_of_the_library_is_refused_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for task in ("arc", "boolq", "winogrande", "openbookqa"):
        with pytest.raises(UserError, match=rf"eval\.harness=\[{task},kd_mc\]: the data cannot be had") as error:
            fetch_harness([task, "kd_mc"], str(folder))
        assert "\n" not in str(error.value)
    fetch_harness(["kd_mc"], str(folder))  # all local: nothing is fetched


def test_without_the_extra_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else found(name))
    check_harness([])
    with pytest.raises(UserError, match=r"pip install 'kdrun\[harness\]'"):
        check_harness(["winogrande"])
