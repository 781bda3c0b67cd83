"""Better and worse are said only where the interval excludes zero, of the same examples, over seeds."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdrun.analysis.comparison import read_rows
from kdrun.analysis.examples import read_measures
from kdrun.analysis.seeds import Group, group_by_seed
from kdrun.analysis.verdicts import Verdict, find_baseline, mixed_examples, more_is_better, unpaired, verdicts
from kdrun.errors import UserError
from tests.analysis.made_runs import add_evaluation, make_run, numbered


def make(folder: Path, name: str, values: np.ndarray, *, seed: int = 1, fingerprint: str = "same", **options) -> Path:
    settings = {"seed": seed, "loss": {"name": name}, **options}
    run = make_run(folder / f"{name}{seed}", settings=settings, name=name)
    add_evaluation(run / "eval" / "quick", numbered(values), fingerprint=fingerprint)
    return run


def groups_of(folder: Path) -> dict[str, Group]:
    return {group.label: group for group in group_by_seed(read_rows([folder]))}


EXAMPLES = np.random.default_rng(0).normal(2, 1, 80)


def test_runs_are_paired_example_by_example(tmp_path: Path) -> None:
    """The difference is 0.8 for every example, however unlike the examples are."""
    make(tmp_path, "sft", EXAMPLES)
    make(tmp_path, "akl", EXAMPLES - 0.8)
    groups = groups_of(tmp_path)
    nll, fkl, rouge = verdicts(groups["akl"], groups["sft"])
    assert (nll.measure, nll.better, nll.num_examples, nll.num_seeds) == ("quick/nll", True, 80, 1)
    assert [nll.difference, nll.low, nll.high] == pytest.approx([-0.8] * 3)
    assert nll.baseline == pytest.approx(EXAMPLES.mean())
    assert fkl.difference == pytest.approx(-0.4)
    assert (rouge.measure, rouge.better, rouge.said) == ("quick/greedy/rouge_l", None, "no difference shown")
    assert [v.measure for v in verdicts(groups["akl"], groups["sft"], measures=["quick/fkl"])] == ["quick/fkl"]


def test_luck_of_training_takes_back_what_one_seed_seems_to_show(tmp_path: Path) -> None:
    """One seed: plainly better. Three seeds that differ by -0.8, +0.6, -0.1: no difference shown."""
    for seed, shift in enumerate((-0.8, 0.6, -0.1)):
        make(tmp_path, "sft", EXAMPLES, seed=seed)
        make(tmp_path, "akl", EXAMPLES + shift, seed=seed)
    groups = groups_of(tmp_path)
    one = [Group(g.label, g.rows[:1], g.settings) for g in (groups["akl"], groups["sft"])]
    assert verdicts(*one)[0].said == "better"
    found = verdicts(groups["akl"], groups["sft"])[0]
    assert found.difference == pytest.approx(-0.1)
    assert (found.said, found.num_seeds) == ("no difference shown", 3)
    assert found.p > 0.5


def test_evaluations_of_other_examples_are_not_paired_and_it_is_said(tmp_path: Path) -> None:
    make(tmp_path, "sft", EXAMPLES)
    make(tmp_path, "akl", EXAMPLES, fingerprint="other")
    make_run(tmp_path / "none", settings={"loss": {"name": "rkl"}})
    groups = groups_of(tmp_path)
    assert verdicts(groups["akl"], groups["sft"]) == []
    assert "different examples in quick" in unpaired(groups["akl"], groups["sft"])[0]
    assert "no evaluation of one name" in unpaired(groups["none"], groups["sft"])[0]
    assert "do not compare: akl | sft" in mixed_examples(list(groups.values()))[0]


def test_texts_that_were_drawn_in_another_way_are_not_judged(tmp_path: Path) -> None:
    """nll and fkl ask for no text: they are, all the same."""
    rows = []
    for name, tokens in (("a", 48), ("b", 256)):
        run = make_run(tmp_path / name, settings={"loss": {"name": name}})
        folder = add_evaluation(run / "eval" / "quick", numbered([2.0, 3.0, 2.5], [30.0, 40.0, 20.0]))
        (folder / "protocol.json").write_text(
            json.dumps({"fingerprint": "same", "settings": {"greedy": True, "max_new_tokens": tokens}})
        )
        rows += read_rows([run])
    ours, theirs = group_by_seed(rows)
    assert {verdict.measure for verdict in verdicts(ours, theirs)} == {"quick/nll", "quick/fkl"}
    assert "not the same examples or decoding" in mixed_examples([ours, theirs])[0]


def test_values_of_examples_are_named_as_in_the_summary(tmp_path: Path) -> None:
    lines = [
        {"nll": 1.0, "greedy": {"text": "a", "finished": True, "rouge_l": 4.0}, "seed1": {"rouge_l": 1.0},
         "seed2": {"rouge_l": 3.0}},
        {"nll": None, "greedy": {"text": "b", "finished": False, "rouge_l": 0.0}, "seed1": {"rouge_l": 5.0},
         "seed2": {"rouge_l": 7.0}},
    ]  # fmt: skip
    folder = add_evaluation(tmp_path / "e", [{"x": 1.0}])
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = folder / "judge" / "gpt"
    judge.mkdir(parents=True)
    (judge / "examples.jsonl").write_text('{"index": 1, "quality": 8}\n')
    found = {name: values.tolist() for name, values in read_measures(folder).items()}
    assert found["sample/rouge_l"] == [2.0, 6.0]
    assert found["greedy/rouge_l"] == [4.0, 0.0]
    assert found["greedy/finished"] == [100.0, 0.0]
    assert found["nll"] == [1.0, pytest.approx(np.nan, nan_ok=True)]
    assert found["judge/gpt/quality"] == [pytest.approx(np.nan, nan_ok=True), 8.0]


def test_the_direction_is_known_of_what_has_one() -> None:
    assert more_is_better("paper/dolly/sample/rouge_l") is True
    assert more_is_better("quick/judge/gpt-4/win") is True
    assert more_is_better("quick/topk_fkl") is False
    assert more_is_better("quick/nll") is False
    assert more_is_better("quick/student_entropy") is None
    higher = Verdict("quick/student_entropy", 1.0, 0.2, 0.1, 0.3, 0.001, None, 10, 1)
    assert higher.said == "higher"
    assert str(higher) == "+0.200 [+0.100, +0.300] higher"


def test_a_baseline_is_found_by_name_folder_or_what_it_is(tmp_path: Path) -> None:
    make(tmp_path, "akl", EXAMPLES)
    run = make_run(tmp_path / "start", settings={"loss": {"name": "sft"}}, name="fine-tuned")
    groups = group_by_seed(read_rows([tmp_path]))
    for name in ("fine-tuned", "start", "sft"):
        assert find_baseline(groups, name).rows[0].folder == run
    with pytest.raises(UserError, match="--baseline mu: no run of that name .there are akl, fine-tuned."):
        find_baseline(groups, "mu")


def test_tasks_of_the_harness_are_paired_where_their_documents_are_the_same(tmp_path: Path) -> None:
    for name, right, documents in (("a", 30, "x"), ("b", 10, "x"), ("c", 10, "y")):
        run = make_run(tmp_path / name, settings={"loss": {"name": name}})
        folder = add_evaluation(run / "eval" / "quick", numbered([2.0, 3.0]))
        lines = [
            {"task": "boolq", "index": i, "doc_sha256": f"{documents}{i}", "acc": float(i < right)} for i in range(40)
        ]
        (folder / "harness.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = groups_of(tmp_path)
    accuracy = verdicts(groups["a"], groups["b"])[-1]
    assert (accuracy.measure, accuracy.num_examples, accuracy.better) == ("quick/harness/boolq/acc", 40, True)
    assert (accuracy.baseline, accuracy.difference) == (0.25, 0.5)
    assert not any("harness" in one.measure for one in verdicts(groups["a"], groups["c"]))


def test_a_small_interval_is_spelled_with_digits_enough() -> None:
    small = Verdict("quick/fkl", 0.01, 0.00021, -0.0001, 0.0005, 0.2, None, 10, 3)
    assert small.interval == "+0.00021 [-0.00010, +0.00050]"
