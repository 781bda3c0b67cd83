"""Tables for a terminal, a paper and a spreadsheet."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from kdrun.analysis.comparison import Row, read_rows
from kdrun.analysis.seeds import group_by_seed
from kdrun.analysis.tables import Spread, Table, cost_table, main_table, spell, verdict_table
from kdrun.analysis.verdicts import verdicts
from tests.analysis.made_runs import add_evaluation, make_run, numbered


def row(name: str, seed: int, **metrics: float) -> Row:
    named = {f"quick/{key}": value for key, value in metrics.items()}
    return Row(Path(f"{name}{seed}"), name, "done", {"seed": seed, "loss.name": name}, named | {"train_s": 60.0})


GROUPS = group_by_seed([row("a_b", 1, nll=1.0, fkl=0.5), row("a_b", 2, nll=2.0), row("sft", 1, nll=3.0)])


def test_the_main_table_spells_mean_and_standard_deviation_and_what_is_missing() -> None:
    table = main_table(GROUPS)
    assert table.header == ["run", "loss.name", "seeds", "NLL", "FKL"]
    assert table.cells() == [
        ["a_b", "a_b", "2", "1.500 +- 0.707", "0.500 (1 missing)"],
        ["sft", "sft", "1", "3.000", "-"],
    ]
    assert "standard deviation" in table.note
    assert main_table(GROUPS, GROUPS[1]).cells()[0][0] == "sft", "the baseline comes first"
    assert cost_table(GROUPS).cells()[0] == ["a_b", "2", "60.0 +- 0.0"]


def test_csv_has_full_precision_and_a_column_for_the_deviation() -> None:
    lines = list(csv.DictReader(io.StringIO(main_table(GROUPS).as_csv())))
    assert float(lines[0]["NLL sd"]) == pytest.approx(0.5**0.5, abs=1e-12)
    assert (lines[1]["NLL"], lines[1]["NLL sd"], lines[1]["FKL"]) == ("3.0", "", "")


def test_latex_is_escaped_and_markdown_keeps_its_columns() -> None:
    table = Table(["run", "x|y"], [["a_b & 5% \\", Spread(1.0, 0.5)]], "note", frozenset({(0, 1)}))
    latex = table.as_latex()
    assert r"a\_b \& 5\% \textbackslash{} & \textbf{1.000 $\pm$ 0.500} \\" in latex
    assert latex.startswith("\\begin{tabular}{lr}\n\\toprule")
    lines = table.as_markdown().splitlines()
    assert lines[0] == r"| run | x\|y |"
    assert lines[2].endswith("| **1.000 +- 0.500** |")
    assert lines[-1] == "note"


def test_the_best_is_bold_only_where_it_is_proven(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(2, 1, 50)
    noise = np.random.default_rng(1).normal(0, 1, 50)
    for name, shift in (("a", -0.5), ("b", 0.0)):
        run = make_run(tmp_path / name, settings={"loss": {"name": name}})
        rouge = 30 + noise if name == "b" else 30 + noise[::-1] + 1e-3
        add_evaluation(run / "eval" / "quick", numbered(values + shift, rouge))
    groups = group_by_seed(read_rows([tmp_path]))
    table = main_table(groups)
    bold = {(line, table.header[column]) for line, column in table.bold}
    assert bold == {(0, "NLL"), (0, "FKL")}, "ROUGE differs by noise"
    judged = verdict_table(groups[1], [(groups[0], verdicts(groups[0], groups[1]))], {"quick/nll": "NLL"})
    assert judged.lines[0][0] == "NLL"
    assert judged.lines[0][3:] == ["-0.500 [-0.500, -0.500]", "0.0001", "better"]
    assert "noise of its training is not in the interval" in judged.note


def test_many_comparisons_are_counted_in_the_note() -> None:
    from kdrun.analysis.tables import verdict_note
    from kdrun.analysis.verdicts import Verdict

    note = verdict_note([Verdict("quick/nll", 1.0, 0.1, -0.1, 0.3, 0.2, None, 10, 3)] * 40)
    assert "40 comparisons, none corrected for: about 2.0 exclude zero by chance" in note
    assert "p below 0.0013" in note
    assert "training" not in note


def test_numbers_are_spelled_with_what_they_have() -> None:
    assert [spell(v) for v in (5e-5, 0.3, 1234.5, True, None, "x", 7)] == [
        "5e-05",
        "0.300",
        "1234",
        "true",
        "-",
        "x",
        "7",
    ]
