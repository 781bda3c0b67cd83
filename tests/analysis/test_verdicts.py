"""Better and worse are said only where the interval excludes zero."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kdrun.analysis.comparison import read_rows
from kdrun.analysis.verdicts import find_baseline, paired, verdicts
from kdrun.errors import UserError
from kdrun.runs.directory import RunDirectory, write_json


def make(folder: Path, fkl: float, rouge: float, *, seed: int, fingerprint: str = "same") -> None:
    RunDirectory.start(folder, command="train", config={"role": "student"}, overrides=[], extra={"name": folder.name})
    random = np.random.default_rng(seed)
    lines = [
        {
            "fkl": fkl + random.normal(),
            "greedy": {"rouge_l": rouge},
            "seed1": {"rouge_l": rouge},
            "seed2": {"rouge_l": rouge + 2},
        }
        for _ in range(200)
    ]
    evaluation = folder / "eval" / "quick"
    evaluation.mkdir(parents=True)
    (evaluation / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(evaluation / "protocol.json", {"fingerprint": fingerprint})
    write_json(evaluation / "summary.json", {"fkl": fkl})


def test_the_interval_is_that_of_an_independent_bootstrap() -> None:
    random = np.random.default_rng(1)
    values, reference = random.normal(0.3, 1, 150), random.normal(0, 1, 150)
    found = paired("m", values, reference, more_is_better=True)
    other = stats.bootstrap((values - reference,), np.mean, method="percentile", n_resamples=10_000, random_state=2)
    assert found.difference == pytest.approx((values - reference).mean())
    assert [found.low, found.high] == pytest.approx(list(other.confidence_interval), abs=0.02)


def test_the_verdict_follows_the_interval_and_the_direction() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 100)
    assert paired("m", noise + 1, np.zeros(100), more_is_better=True).better is True
    assert paired("m", noise + 1, np.zeros(100), more_is_better=False).better is False
    nothing = paired("m", noise - noise.mean(), np.zeros(100), more_is_better=True)
    assert nothing.better is None
    assert "no difference shown" in str(nothing)


def test_runs_are_paired_example_by_example_over_seeds(tmp_path: Path) -> None:
    make(tmp_path / "sft", 1.0, 30.0, seed=0)
    make(tmp_path / "akl", 0.2, 30.0, seed=0)
    sft, akl = sorted(read_rows([tmp_path]), key=lambda row: row.label, reverse=True)
    found = {verdict.measure: verdict for verdict in verdicts(akl, sft)}
    assert found["FKL"].difference == pytest.approx(-0.8)
    assert found["FKL"].better is True
    assert found["ROUGE-L sampled"].baseline == pytest.approx(31.0)
    assert found["ROUGE-L greedy"].better is None


def test_other_examples_are_not_paired_and_an_unknown_baseline_is_named(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.0, 30.0, seed=0)
    make(tmp_path / "b", 1.0, 30.0, seed=0, fingerprint="other")
    rows = read_rows([tmp_path])
    with pytest.raises(UserError, match="different examples"):
        verdicts(rows[0], rows[1])
    with pytest.raises(UserError, match="no run of that name.*a, b"):
        find_baseline(rows, "c")
