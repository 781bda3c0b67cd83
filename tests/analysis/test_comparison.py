"""Runs as rows, from run directories alone."""

import csv
import os
from pathlib import Path

import pytest

from kdrun.analysis.comparison import differing_settings, read_rows, write_csv
from kdrun.analysis.costs import mean_costs
from kdrun.analysis.curves import draw_curves, read_curves
from kdrun.runs.directory import RunDirectory, write_json
from tests.analysis.made_runs import add_evaluation, make_run, numbered


def akl(folder: Path, mu: float, **options) -> Path:
    settings = {"loss": {"name": "akl", "mu": mu}, "track": {"mode": str(mu)}, **options.pop("settings", {})}
    make_run(folder, settings=settings, name=options.pop("name", f"mu-{mu}"), **options)
    write_json(folder / "eval" / "quick" / "summary.json", {"nll": 2.5, "fkl": mu, "greedy/rouge_l": 40.0})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    akl(tmp_path / "sweep" / "0", 0.3)
    akl(tmp_path / "sweep" / "1", 0.5)
    return tmp_path


def test_a_run_named_twice_comes_once_and_a_benchmark_not_at_all(runs: Path) -> None:
    RunDirectory.start(runs / "bench", command="bench", config={}, overrides=[])
    rows = read_rows([runs, runs / "sweep" / "0"])
    assert [row.label for row in rows] == ["mu-0.3", "mu-0.5"]
    assert rows[0].metrics == {"train_s": 2.5, "quick/nll": 2.5, "quick/fkl": 0.3, "quick/greedy/rouge_l": 40.0}


def test_cells_of_one_name_are_told_apart_by_their_settings_and_seeds_last(runs: Path) -> None:
    for cell in ("0", "1"):
        RunDirectory.open(runs / "sweep" / cell, key="run").note(name="akl")
    akl(runs / "sweep" / "2", 0.5, name="akl", settings={"seed": 2})
    assert [row.label for row in read_rows([runs])] == ["akl 0.3", "akl 0.5 seed 1", "akl 0.5 seed 2"]


def test_settings_of_the_mirror_do_not_count_as_differences(runs: Path) -> None:
    assert differing_settings(read_rows([runs])) == ["loss.mu"]


def test_the_newest_evaluation_counts_and_a_teachers_evaluation_does_not(runs: Path) -> None:
    again = runs / "sweep" / "0" / "eval" / "quick-2"
    write_json(again / "summary.json", {"fkl": 0.1})
    write_json(again / "run.json", {"status": "done", "role": "student"})
    os.utime(again, (2e9, 2e9))
    other = runs / "sweep" / "0" / "eval" / "quick-3"
    write_json(other / "summary.json", {"fkl": 9.0})
    write_json(other / "run.json", {"status": "done", "role": "teacher"})
    os.utime(other, (3e9, 3e9))
    assert read_rows([runs])[0].metrics["quick/fkl"] == 0.1


def test_suites_and_judges_of_an_evaluation_are_found_beneath_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run") / "eval" / "paper"
    write_json(folder / "summary.json", {"dolly/nll": 2.0})
    add_evaluation(folder / "dolly", numbered([2.0, 2.0]))
    write_json(folder / "dolly" / "judge" / "gpt" / "summary.json", {"quality": 7.5})
    (row,) = read_rows([tmp_path])
    assert row.evaluations["paper/dolly"] == folder / "dolly"
    assert row.metrics["paper/dolly/nll"] == 2.0
    assert row.metrics["paper/dolly/judge/gpt/quality"] == 7.5


def test_the_csv_holds_every_metric_a_status_and_the_folder(runs: Path) -> None:
    akl(runs / "sweep" / "2", 0.7, status="failed")
    write_csv(runs / "t.csv", read_rows([runs]))
    with (runs / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["loss.mu"], row["status"]) for row in rows] == [("0.3", "done"), ("0.5", "done"), ("0.7", "failed")]
    assert rows[0]["quick/fkl"] == "0.3"
    assert rows[1]["folder"].endswith("sweep/1")


def test_rates_are_means_over_the_time_of_training_not_the_last_report(tmp_path: Path) -> None:
    """10 steps of 1 s at 100 tokens/s, then 5 steps of 2 s at 400: 20 s in all, 250 tokens/s."""
    lines = [
        '{"step": 0, "valid/nll": 1.0}',
        '{"step": 10, "train/step_s": 1.0, "train/tokens_per_s": 100, "train/teacher_share": 0.2}',
        '{"step": 15, "train/step_s": 2.0, "train/tokens_per_s": 400}',
        '{"step": 20, "train/st',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert mean_costs(tmp_path) == pytest.approx({"train/tokens_per_s": 250, "train/teacher_share": 0.2})


def test_curves_are_read_from_the_metrics_and_a_torn_line_is_left_out(runs: Path) -> None:
    path = runs / "sweep" / "0" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 20, "valid')
    assert read_curves(path.parent)["valid/fkl"] == [(0, 10.5), (10, 0.5)]
    draw_curves(read_rows([runs]), runs / "p.svg")
    assert "<svg" in (runs / "p.svg").read_text()
