"""A sweep is the train task many times: one folder a cell, one table at its end, a failing cell stops no other."""

import csv
import shutil
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.sweep import with_cached_teacher
from kdrun.words import read_flags
from tests.conftest import SMALL, Kdrun, read_json, read_lines

CELL = [*SMALL, "train.max_steps=2", "evaluate=false"]


@pytest.fixture(scope="module")
def swept(workspace: Path) -> tuple[Path, str]:
    from tests.conftest import run_kdrun

    done = run_kdrun("sweep", "loss=akl", "mu=0.3,0.5,0.7", *CELL, "hydra.sweep.dir=outputs/sweep/mu", cwd=workspace)
    return workspace / "outputs" / "sweep" / "mu", done.stdout


def test_every_cell_is_a_run_of_its_own_with_its_mu(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    records = [read_json(folder / str(cell) / "run.json") for cell in range(3)]
    assert [record["status"] for record in records] == ["done"] * 3
    assert [f"loss.mu={mu}" in record["overrides"] for mu, record in zip((0.3, 0.5, 0.7), records, strict=True)] == [
        True
    ] * 3
    assert {record["group"] for record in records} == {"mu"}
    for facts in ("student_start", "data"):
        assert len({record[facts]["sha256"] for record in records}) == 1, "one experiment: the same start and rows"
    assert {record["teacher"]["source"] for record in records} == {"cached"}
    assert len({record["teacher"]["path"] for record in records}) == 1, "one teacher cache"
    made = [record["teacher"]["sets"]["train"]["made_here"] for record in records]
    assert not any(made[1:])


def test_cells_see_the_rows_in_one_order_and_a_typed_teacher_stays(kdrun_here: Kdrun, workspace: Path) -> None:
    """With kd_ratio=0 mu does not act, so equal losses at every step say: the same rows in the same order."""
    done = kdrun_here("sweep", "teacher=live", "loss=akl", "mu=0.3,0.7", "kd_ratio=0", *CELL, "train.max_steps=8",
                 "train.log_every=1", "hydra.sweep.dir=outputs/sweep/order")  # fmt: skip
    assert "teacher=cached" not in done.stderr
    folder = workspace / "outputs" / "sweep" / "order"
    assert {read_json(folder / cell / "run.json")["teacher"]["source"] for cell in "01"} == {"live"}
    ours, theirs = (
        [line["train/loss"] for line in read_lines(folder / cell / "metrics.jsonl") if "train/loss" in line]
        for cell in "01"
    )
    assert len(set(ours)) == 8
    assert ours == theirs


@pytest.mark.parametrize(("rollouts", "cached"), [("data,teacher", True), ("data,mixed", False)])
def test_one_pass_of_the_teacher_serves_cells_whose_text_is_there_before(rollouts: str, cached: bool) -> None:
    words, flags = [f"rollout={rollouts}", "loss=akl"], read_flags(["--multirun"])
    cells, words = with_cached_teacher(compose_cells("train", words, flags, CONF), words, flags, CONF)
    assert {cell.config.teacher.kind for cell in cells} == {"cached" if cached else "live"}
    assert ("teacher=cached" in words) == cached


def test_the_sweep_ends_with_its_table(swept: tuple[Path, str]) -> None:
    assert "loss.mu" in swept[1]
    assert "0.300" in swept[1]
    assert "0.700" in swept[1]


def test_a_folder_that_holds_a_sweep_is_not_written_into(swept: tuple[Path, str], kdrun_here: Kdrun) -> None:
    done = kdrun_here("sweep", "loss=akl", "mu=0.3", *CELL, "hydra.sweep.dir=outputs/sweep/mu", check=False)
    assert done.returncode == 2
    assert "holds a sweep already" in done.stderr
    assert "resume=outputs/sweep/mu" in done.stderr


def test_compare_reads_a_sweep_directory_and_writes_csv(swept: tuple[Path, str], kdrun: Kdrun, workspace: Path) -> None:
    done = kdrun("compare", str(swept[0]), "outputs/teachers", "--csv", "table.csv")
    assert "teacher" in done.stdout
    with (workspace / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert [row["loss.mu"] for row in rows[:3]] == ["0.3", "0.5", "0.7"]


def test_a_cell_that_fails_does_not_stop_the_others(kdrun_here: Kdrun, workspace: Path) -> None:
    done = kdrun_here("sweep", "loss=sft", "train.lr=1e30,1e-3", *CELL, "train.max_steps=30", "train.clip_norm=null",
                 "hydra.sweep.dir=outputs/sweep/lr", check=False)  # fmt: skip
    folder = workspace / "outputs" / "sweep" / "lr"
    assert done.returncode == 1
    assert "NonFiniteLoss" in done.stderr
    assert "failed" in done.stdout, "the table comes all the same"
    assert read_json(folder / "0" / "run.json")["status"] == "failed"
    assert read_json(folder / "1" / "run.json")["status"] == "done"


@pytest.mark.slow
def test_the_joblib_launcher_runs_cells_in_parallel(kdrun: Kdrun, workspace: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    kdrun(
        "sweep",
        "loss=fkl,rkl",
        *CELL,
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweep.dir=outputs/sweep/jobs",
        fresh=True,
    )
    folder = workspace / "outputs" / "sweep" / "jobs"
    assert [read_json(folder / str(i) / "run.json")["status"] for i in range(2)] == ["done", "done"]


def test_the_first_run_that_needs_a_teacher_makes_it_and_the_second_takes_it(
    kdrun_here: Kdrun, workspace: Path, tmp_path: Path
) -> None:
    """A pair of a user's own, in a folder of the user's own, whose teacher is not there yet."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    fine_tuning = conf / "train" / "tiny_teacher.yaml"
    fine_tuning.write_text(fine_tuning.read_text().replace("max_steps: 1400", "max_steps: 3"))
    quick = conf / "eval" / "quick.yaml"  # the teacher is made and evaluated by its own words, not by those typed here
    small_words = quick.read_text().replace("num_examples: 500", "num_examples: 6")
    quick.write_text(small_words.replace("bertscore: true", "bertscore: false"))
    pair = workspace / "pairs" / "pair"
    pair.mkdir(parents=True)
    (pair / "mini.yaml").write_text("defaults: [tiny]\nname: mini\nteacher_layers: 1\nvocab_size: 280\n")
    small = [word for word in CELL if not word.startswith(("pair.vocab", "pair.teacher"))]
    words = ["--config-dir", "pairs", "pair=mini", *small]
    first = kdrun_here("train", *words, "pair.teacher_width=16", "hydra.run.dir=outputs/first", conf=conf)
    assert "No teacher at outputs/teachers/mini-unicode yet" in first.stderr
    teacher = workspace / "outputs" / "teachers" / "mini-unicode"
    assert read_json(teacher / "run.json")["status"] == "done"
    assert read_json(teacher / "summary.json")["steps"] == 3
    second = kdrun_here("train", *words, "pair.teacher_width=16", "hydra.run.dir=outputs/second", conf=conf)
    assert "No teacher" not in second.stderr
    other = kdrun_here("train", *words, "pair.teacher_width=20", "hydra.run.dir=outputs/third", check=False)
    assert other.returncode == 2
    assert "pair.teacher_width=20: the teacher at outputs/teachers/mini-unicode was made with" in other.stderr


def test_a_users_own_loss_file_and_experiment_work(kdrun_here: Kdrun, workspace: Path) -> None:
    mine = workspace / "mine"
    (mine / "loss").mkdir(parents=True)
    (mine / "experiment").mkdir()
    (mine / "loss" / "gentle.yaml").write_text("defaults: [akl]\nmu: 0.25\n")
    (mine / "experiment" / "two.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /loss: gentle\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    kdrun_here("sweep", "--config-dir", "mine", "experiment=two", *CELL, "hydra.sweep.dir=outputs/sweep/two")
    configs = [(workspace / "outputs" / "sweep" / "two" / cell / "config.yaml").read_text() for cell in ("0", "1")]
    assert all("mu: 0.25" in config for config in configs)
    assert "seed: 1" in configs[0]
    assert "seed: 2" in configs[1]
