"""Runs that differ in nothing but the seed are one group; what is not done is never averaged."""

from pathlib import Path

import pytest

from kdrun.analysis.comparison import Row, read_rows
from kdrun.analysis.seeds import differing, group_by_seed
from tests.analysis.made_runs import make_run


def row(label: str, seed: int, fkl: float | None, *, status: str = "done", **settings) -> Row:
    metrics = {} if fkl is None else {"quick/fkl": fkl}
    return Row(Path(f"{label}-{seed}"), label, status, {"seed": seed, "loss.name": label, **settings}, metrics)


def test_mean_and_standard_deviation_are_over_seeds() -> None:
    group, alone = group_by_seed([row("akl", 0, 1.0), row("fkl", 0, 5.0), row("akl", 1, 2.0), row("akl", 2, 3.0)])
    assert (group.label, alone.label) == ("akl", "fkl")
    assert group.mean("quick/fkl") == 2.0
    assert group.sd("quick/fkl") == 1.0, "n - 1"
    assert (alone.mean("quick/fkl"), alone.sd("quick/fkl")) == (5.0, None)
    assert group.mean("quick/nothing") is None
    assert "seed" not in group.settings
    assert differing([group, alone]) == ["loss.name"]


def test_a_run_that_is_not_done_and_a_second_run_of_a_seed_stand_alone() -> None:
    rows = [row("akl", 0, 1.0), row("akl", 1, 3.0), row("akl", 2, 9.0, status="failed"), row("akl", 1, 7.0)]
    together, failed, again = group_by_seed(rows)
    assert together.mean("quick/fkl") == 2.0
    assert (failed.status, failed.mean("quick/fkl")) == ("failed", 9.0)
    assert again.mean("quick/fkl") == 7.0
    assert len({together.label, failed.label, again.label}) == 3


def test_another_setting_makes_another_group_and_another_evaluation_setting_does_not() -> None:
    assert len(group_by_seed([row("a", 0, 1.0, **{"train.lr": 1}), row("a", 1, 1.0, **{"train.lr": 2})])) == 2
    assert len(group_by_seed([row("a", 0, 1.0, **{"eval.name": "x"}), row("a", 1, 1.0, **{"eval.name": "y"})])) == 1


@pytest.mark.parametrize(
    ("names", "label"),
    [(("akl", "akl"), "akl"), (("akl-seed1", "akl-seed2"), "akl"), (("mu_s1", "mu_s2"), "mu"), (("1", "2"), "1")],
)
def test_a_group_is_called_what_its_runs_names_have_in_common(tmp_path: Path, names: tuple, label: str) -> None:
    for i, name in enumerate(names):
        make_run(tmp_path / str(i), settings={"seed": i}, name=name)
    (group,) = group_by_seed(read_rows([tmp_path]))
    assert group.label == label
