"""What is seen of a sweep: the table on a terminal, the lines elsewhere, the summary."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kdrun.commands.sweep import Watch, shown, spell_s, summarise
from tests.conftest import SMALL
from tests.runs.test_sweep import make_cell, make_sweep


def rendered(folder: Path, height: int, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(Watch(folder).table(height, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_every_cell_its_state_and_the_best(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "s")
    make_cell(folder / "0", "done", fkl=0.51234)
    make_cell(folder / "1", "done", fkl=0.4)
    make_cell(folder / "2", "running", seconds=4)
    text = rendered(folder, 20)
    assert "1 running, 1 waiting" in text and "2 done" in text
    assert "valid/fkl" in text and "0.5123" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["cell"].split() == ["cell", "words", "state", "progress", "left", "valid/fkl"]
    assert "mu=0.2" in lines["1"] and "0.4000" in lines["1"] and "best" in lines["1"]
    narrow = rendered(folder, 20, 90)
    assert max(map(len, narrow.splitlines()[1:])) <= 90 and "0.4000" in narrow and "mu=0.2" in narrow
    assert "best" not in lines["0"] and "starting" in lines["2"] and "waiting" in lines["3"]
    # 10 s a cell: 6 of the running one and 10 of the waiting one; run.json knows whole seconds only.
    assert any(f"about {seconds} s left in all" in text for seconds in (14, 15, 16))


def test_a_low_terminal_shows_what_runs_what_failed_and_the_best(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "s", 9)
    for number in range(6):
        make_cell(folder / str(number), "done", fkl=1.0 - number / 10 if number != 3 else 0.1)
    make_cell(folder / "6", "failed", error="ValueError: broke\nmore")
    make_cell(folder / "7", "running")
    text = rendered(folder, 3)
    rows = text[text.index("cell  words") : text.index("6 more cells")].splitlines()[1:]
    assert [line.split()[0] for line in rows] == ["3", "6", "7"]
    assert "6 more cells" in text and "ValueError: broke" in text


def test_without_a_terminal_a_line_tells_each_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sweep(tmp_path / "s", 3)
    make_cell(folder / "0", "done", fkl=0.5)
    with shown(folder):
        make_cell(folder / "1", "done", fkl=0.25, seconds=70)
        make_cell(folder / "2", "failed", error="ValueError: broke")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "1 of 3 cells are done already",
        "cell 1 of 3 (mu=0.2): done in 1 min 10 s, valid/fkl 0.2500, the best so far",
        f"cell 2 of 3 (mu=0.3): failed: ValueError: broke ({folder}/2/log.txt)",
    ]


def test_the_summary_names_the_best_cell_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sweep(tmp_path / "s", 3)
    make_cell(folder / "0", "done", fkl=0.5)
    make_cell(folder / "1", "interrupted", error="KeyboardInterrupt: ")
    summarise(folder)
    out = capsys.readouterr().out
    assert f"best: cell 0 (mu=0.1), valid/fkl 0.5000, the least of 1: {folder}/0" in out
    assert "cell 1 (mu=0.2): interrupted" in out
    for line in (f"kdrun sweep resume={folder}", f"kdrun evaluate run={folder}/0", f"kdrun compare {folder}",
                 f"kdrun report {folder}"):  # fmt: skip
        assert line in out


def test_durations_are_spelled_for_people() -> None:
    assert [spell_s(s) for s in (0.4, 59.4, 60, 200, 7500)] == ["0 s", "59 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]


def test_on_a_terminal_there_is_one_display_and_no_line_of_a_cell_in_it(workspace: Path) -> None:
    """On a pseudo-terminal the table is drawn, no cell's own bar; the cell's log is in its file."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    words = [
        "sweep",
        "loss=fkl,rkl",
        *SMALL,
        "train.max_steps=3",
        "evaluate=false",
        "hydra.sweep.dir=outputs/sweep/tty",
    ]
    with subprocess.Popen([sys.executable, "-m", "kdrun", *words], cwd=workspace, stderr=writer,
                          stdout=subprocess.PIPE, text=True, env=environment) as process:  # fmt: skip
        os.close(writer)
        seen = b""
        try:
            while piece := os.read(reader, 4096):
                seen += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        out = process.communicate()[0]
    os.close(reader)
    text = seen.decode()
    assert process.returncode == 0, text
    assert "loss=fkl" in text and "running" in text and "valid/fkl" in text
    assert "pair.vocab_size=300" not in text and "done: " not in text, "a cell's own lines are in its log.txt"
    log = (workspace / "outputs" / "sweep" / "tty" / "0" / "log.txt").read_text()
    assert "pair.vocab_size=300" in log and "done: " in log
    assert "best: cell" in out and "best" not in out.split("best: cell")[0]
    assert not list((workspace / "outputs" / "sweep" / "tty").glob("*/progress.json"))
