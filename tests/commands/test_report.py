"""kdrun report from the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdrun.cli import app
from kdrun.commands.report import report
from kdrun.errors import UserError
from tests.analysis.made_runs import add_evaluation, make_run, numbered
from tests.conftest import run_kdrun


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, shift in (("fkl", 0.0), ("akl", 0.5)):
        run = make_run(tmp_path / "runs" / name, settings={"loss": {"name": name}})
        add_evaluation(run / "eval" / "quick", numbered([2.0 + shift, 3.0 + shift, 2.5 + shift]))
    return tmp_path / "runs"


def test_the_command_writes_one_page_and_a_folder_and_says_where(runs: Path, tmp_path: Path) -> None:
    done = run_kdrun(
        "report", str(runs), "-o", "r.html", "--baseline", "fkl", "--title", "Is AKL worth it?", cwd=tmp_path
    )
    assert "written: r.html" in done.stdout and "r_files" in done.stdout
    page = (tmp_path / "r.html").read_text()
    assert "<h1>Is AKL worth it?</h1>" in page and 'class="worse"' in page
    assert (tmp_path / "r_files" / "table-main.csv").exists()


def test_a_page_or_folder_that_exists_is_refused_with_a_name_that_is_free(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    page.write_text("mine")
    (tmp_path / "r-2.html").write_text("mine too")
    with pytest.raises(UserError, match=r"the file exists; type: -o .*r-3\.html"):
        report([runs], page)
    assert page.read_text() == "mine"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "x").write_text("mine")
    with pytest.raises(UserError, match=r"something is there already; type: --figures .*figures-2"):
        report([runs], tmp_path / "new.html", figures=tmp_path / "figures")
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no run directory there"),
        (["runs", "-o", "report.pdf"], "must end in .html; type: -o report.html"),
        (["runs", "--baseline", "sft2"], "no run of that name (there are akl, fkl"),
        (["wandb:me/project"], "type: kdrun compare"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    runs: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if words == ["."] else tmp_path)
    done = CliRunner().invoke(app, ["report", *words])
    assert done.exit_code == 2
    assert said in done.output and done.output.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
