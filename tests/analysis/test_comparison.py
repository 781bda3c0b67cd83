"""One table from run directories alone."""

import csv
import os
from pathlib import Path

import pytest

from kdrun.analysis.comparison import differing_settings, read_rows, table, write_csv
from kdrun.analysis.curves import draw_curves, read_curves
from kdrun.commands.compare import compare
from kdrun.errors import UserError
from kdrun.runs.directory import MetricsFile, RunDirectory, write_json


def make_run(folder: Path, *, mu: float, fkl: float, status: str = "done", seed: int = 1) -> Path:
    config = {"seed": seed, "loss": {"name": "akl", "mu": mu}, "track": {"mode": str(mu)}}
    run = RunDirectory.start(folder, command="train", config=config, overrides=[], extra={"name": f"mu-{mu}"})
    write_json(folder / "summary.json", {"valid/nll": 2.0, "valid/fkl": fkl, "train_s": 2.5})
    write_json(folder / "eval" / "quick" / "summary.json", {"nll": 2.5, "fkl": fkl, "greedy/rouge_l": 40.0})
    file = MetricsFile(folder / "metrics.jsonl")
    for step in (0, 10):
        file.write(step=step, time_s=1.0, **{"valid/fkl": fkl + 10 - step, "valid/nll": 2.0})
    file.close()
    run.note(status=status)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "sweep" / "0", mu=0.3, fkl=0.7)
    make_run(tmp_path / "sweep" / "1", mu=0.5, fkl=0.6)
    return tmp_path


def test_columns_are_the_settings_that_differ_and_the_final_metrics(runs: Path) -> None:
    header, cells = table(read_rows([runs]))
    assert header == ["run", "loss.mu", "NLL", "FKL", "ROUGE-L greedy", "train s"]
    assert cells == [["mu-0.3", 0.3, 2.5, 0.7, 40.0, 2.5], ["mu-0.5", 0.5, 2.5, 0.6, 40.0, 2.5]]


def test_a_run_that_is_not_done_shows_its_status_and_a_run_named_twice_comes_once(runs: Path) -> None:
    make_run(runs / "sweep" / "2", mu=0.7, fkl=0.9, status="failed")
    rows = read_rows([runs, runs / "sweep" / "0"])
    header, cells = table(rows)
    assert len(cells) == 3
    assert [line[header.index("status")] for line in cells] == ["done", "done", "failed"]


def test_cells_of_one_name_are_told_apart_by_their_settings(runs: Path) -> None:
    for cell in ("0", "1"):
        run = RunDirectory.open(runs / "sweep" / cell, key="run")
        run.note(name="akl")
    assert [row.label for row in read_rows([runs])] == ["akl 0.3", "akl 0.5"]


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


def test_evaluations_of_several_names_get_columns_of_their_own(runs: Path) -> None:
    write_json(runs / "sweep" / "0" / "eval" / "vicuna" / "summary.json", {"nll": 4.0, "greedy/rouge_l": 10.0})
    header, cells = table(read_rows([runs]))
    line = dict(zip(header, cells[0], strict=True))
    assert line["quick ROUGE-L greedy"] == 40.0
    assert line["vicuna ROUGE-L greedy"] == 10.0
    assert dict(zip(header, cells[1], strict=True))["vicuna NLL"] is None


def test_the_csv_holds_every_metric_and_the_folder(runs: Path) -> None:
    write_csv(runs / "t.csv", read_rows([runs]))
    with (runs / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loss.mu"] for row in rows] == ["0.3", "0.5"]
    assert rows[0]["valid/fkl"] == "0.7"
    assert rows[1]["folder"].endswith("sweep/1")


def test_compare_overwrites_nothing_and_names_what_is_missing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([runs], csv=runs / "t.csv", plot=runs / "p.png")
    assert "mu-0.3" in capsys.readouterr().out
    assert (runs / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="exists"):
        compare([runs], csv=runs / "t.csv")
    with pytest.raises(UserError, match="no such folder"):
        compare([runs / "nowhere"])
    (runs / "empty").mkdir()
    with pytest.raises(UserError, match="no run directory"):
        compare([runs / "empty"])
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        compare([runs], plot=runs / "p.gif")


def test_curves_are_read_from_the_metrics_and_a_torn_line_is_left_out(runs: Path) -> None:
    path = runs / "sweep" / "0" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 20, "valid')
    assert read_curves(path.parent)["valid/fkl"] == [(0, 10.7), (10, pytest.approx(0.7))]
    draw_curves(read_rows([runs]), runs / "p.svg")
    assert "<svg" in (runs / "p.svg").read_text()
