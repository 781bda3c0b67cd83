"""kdrun compare: what is printed and written, and what is refused before anything is read."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from kdrun.commands.compare import compare
from kdrun.errors import UserError
from tests.analysis.made_runs import add_evaluation, make_run, numbered
from tests.conftest import run_kdrun


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """SFT and two values of mu, two seeds each, of which a failed one; AKL is better by 0.5 in every example."""
    difficulty = np.random.default_rng(0).normal(3, 1, 40)
    for name, settings, better in (("sft", {"name": "sft"}, 0.0), ("mu", {"name": "akl", "mu": 0.3}, 0.5),
                                   ("mu", {"name": "akl", "mu": 0.7}, 0.5)):  # fmt: skip
        for seed in (1, 2):
            folder = tmp_path / "sweep" / f"{name}{settings.get('mu', '')}-{seed}"
            failed = settings.get("mu") == 0.7 and seed == 2
            make_run(folder, settings={"loss": settings, "seed": seed, "pair": {"teacher": "org/teacher"}}, name=name,
                     status="failed" if failed else "done")  # fmt: skip
            if not failed:
                noise = 0.01 * np.random.default_rng(seed).normal(size=40) * better
                add_evaluation(folder / "eval" / "quick", numbered(difficulty - better + noise))
    return tmp_path / "sweep"


def test_the_answer_is_printed_with_its_grounds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([runs], baselines=["sft"])
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["mu", "0.3"] in [line[:2] for line in lines]
    assert any(line[:3] == ["mu", "0.7", "seed"] and "failed" in line for line in lines)
    assert "against sft" in text
    assert "better" in text
    assert "not shown" in text, "ROUGE is the same"
    assert "intervals over 40 examples and, where both sides have several, 2 seeds." in " ".join(text.split())
    assert "teacher: no evaluation on the students' examples; type: kdrun evaluate run=" in text
    assert "With one seed on a side" in text


def test_files_are_written_and_none_is_written_over(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"csv": runs / "t.csv", "latex": runs / "t.tex", "markdown": runs / "t.md", "plot": runs / "p.png"}
    compare([runs], baselines=["sft"], **files)
    printed = capsys.readouterr().out
    assert all(f"written: {path}" in printed for path in [*files.values(), runs / "t-verdicts.csv"])
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    assert r"\toprule" in files["latex"].read_text()
    assert "| run | " in files["markdown"].read_text()
    with files["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7, "six runs and the teacher"
    with (runs / "t-verdicts.csv").open() as file:
        verdicts = {(line["run"], line["measure"]): line for line in csv.DictReader(file)}
    assert verdicts["mu 0.3", "quick/fkl"]["verdict"] == "better"
    assert verdicts["mu 0.3", "quick/fkl"]["num_seeds"] == "2"
    assert float(verdicts["mu 0.3", "quick/nll"]["difference"]) == pytest.approx(-0.5, abs=0.01)
    for option, path in files.items():
        with pytest.raises(UserError, match=f"--{option} .*exists"):
            compare([runs], **{option: path})
    (runs / "t.csv").unlink()
    with pytest.raises(UserError, match=r"--csv .*t-verdicts.csv: the file exists"):
        compare([runs], baselines=["sft"], csv=runs / "t.csv")


def test_every_metric_is_shown_when_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([runs], every_metric=True)
    assert "quick/greedy/rouge_l" in capsys.readouterr().out


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no run directory"):
        compare([tmp_path])
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        compare([tmp_path], plot=tmp_path / "p.gif")
    with pytest.raises(UserError, match="must be wandb:ENTITY/PROJECT"):
        compare(["wandb:nothing"])


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(
    runs: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    compare([runs], baselines=["sft"])
    tables = capsys.readouterr().out.split("\n- ")[0]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", tables).splitlines()
    assert max(len(line) for line in lines) <= width
    assert "loss.name" in tables, "words of a heading stay whole"
    assert "+0.00 [+0.00, +0.00]" in tables, "an interval stays on one line"


def test_the_command_line_says_a_mistake_in_one_line(runs: Path) -> None:
    done = run_kdrun("compare", str(runs), "--baseline", "nobody", cwd=runs, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--baseline nobody: no run of that name" in done.stderr
    assert "wandb:ENTITY/PROJECT" in run_kdrun("compare", "--help", cwd=runs, env={"COLUMNS": "120"}).stdout
    assert "against mu 0.3" in run_kdrun("compare", str(runs), "--baseline", "mu 0.3", "--md", "t.md", cwd=runs).stdout
