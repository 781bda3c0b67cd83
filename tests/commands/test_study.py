"""kdrun study through the real command: what it leaves, what it refuses, when it exits with 1."""

from importlib import import_module
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.explain import group_options
from kdrun.words import read_flags
from tests.conftest import SMALL, Kdrun, read_json, run_kdrun

FILES = {"claims.md", "config.yaml", "findings.json", "run.json"}


def test_headtail_makes_its_runs_reads_them_and_leaves_everything_in_its_folder(kdrun_here: Kdrun) -> None:
    words = ["loss=fkl,rkl", "seed=0", "train.max_steps=5", "train.valid_every=1"]
    done = kdrun_here("study", "study=headtail", *SMALL, *words, "hydra.run.dir=outputs/headtail")
    folder = Path("outputs/headtail")
    assert {path.name for path in folder.iterdir() if path.is_file()} - {"log.txt"} == FILES
    assert {path.name for path in (folder / "runs").iterdir() if path.is_dir()} == {"0", "1"}
    assert {path.name for path in (folder / "tables").iterdir()} == {"curves.csv", "leads.csv"}
    pictures = {f"{name}.{kind}" for name in ("gaps", "paths", "divergences") for kind in ("png", "svg", "csv")}
    assert {path.name for path in (folder / "figures").iterdir()} == pictures
    found = read_json(folder / "findings.json")
    assert [claim["key"] for claim in found["claims"]][:2] == ["fkl_head_first", "rkl_tail_first"]
    assert sum(found["verdicts"].values()) == len(found["claims"]) == 4
    assert all(claim[part] for claim in found["claims"] for part in ("statement", "source", "measured", "tolerance"))
    for claim in found["claims"]:
        assert f"{claim['verdict'].upper()}" in done.stdout
        assert claim["statement"] in (folder / "claims.md").read_text()
    typed = kdrun_here("study", "study=headtail", "study.runs=outputs/headtail/runs", "seed=3", check=False)
    assert typed.returncode == 2
    assert typed.stderr == "kdrun: seed=3: study.runs= names runs that are made; leave out one of the two\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study=headtail", "study.runs=nowhere"], "study.runs=nowhere: no such folder; give that of a sweep"),
        (["study=headtail", "study.runs=outputs/teachers"], "there is no fkl and no rkl (no finished distillation)"),
        (["study=headtail", "study.windows=[0.5,2]"], "study.windows.1=2"),
        (["study=headtail", "study.parts=train"], "unknown key 'study.parts'; did you mean 'study.part'?"),
        (["study=headtail", "losss=fkl"], "unknown key 'losss'; did you mean 'loss'?"),
        (["study=toy", "seed=3"], "unknown key 'seed'"),
        (["study=toy", "study.losses=[fk]"], "study.losses: 'fk' is no divergence; one of fkl, rkl,"),
        (["study=toy", "study.losses=[sft]"], "study.losses: 'sft' is no divergence"),
        (["study=toy", "study.losses=[{name:akl,mu:2}]"], "study.losses: akl with mu=2: input should be less than 1"),
        (["study=toy", "study.losses=[{name:akl,nu:2}]"], "akl has no nu; it takes mu, head, reversed"),
        (["study=toy", "study.losses=[]"], "study.losses"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(kdrun_here: Kdrun, words: list[str], message: str) -> None:
    before = set(Path("outputs").rglob("*"))
    done = kdrun_here("study", *words, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("kdrun: ") and message in done.stderr
    assert set(Path("outputs").rglob("*")) == before


def test_the_help_shows_the_example_whole(tmp_path: Path) -> None:
    """rich takes [fkl,rkl] for markup, unless it is escaped."""
    shown = run_kdrun("study", "--help", cwd=tmp_path, env={"COLUMNS": "200"}).stdout
    assert "kdrun study rank study.losses=[fkl,rkl] |" in shown


def test_the_study_is_named_first(tmp_path: Path) -> None:
    done = run_kdrun("study", "--strict", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "kdrun: study: say which first, one of gaussians, headtail, losses, rank, theory, toy; "
        "for example kdrun study toy\n"
    )
    done = run_kdrun("study", "theory", "--strict", "study.tolerance=0", cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (
        2, "kdrun: study.tolerance=0: must be a number above 0; for example study.tolerance=1e-12\n"
    )  # fmt: skip


@pytest.mark.parametrize("which", group_options(CONF, "study"))
def test_every_study_composes_and_is_a_module_of_its_name(which: str) -> None:
    (cell,) = compose_cells("study", [f"study={which}"], read_flags([]), CONF)
    assert cell.config.study.name == which
    assert callable(import_module(f"kdrun.studies.{which}").study)
