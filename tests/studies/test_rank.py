"""Linear maps of some rank: the reference statement of studies.md, and what is worked by hand."""

import math
from typing import Any

import pytest
import torch

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.studies.contenders import contenders
from kdrun.studies.findings import Findings
from kdrun.studies.rank import (
    draw_maps,
    faster_claim,
    fit_maps,
    mean_log_ratio,
    row_centred_distance,
    steps_to_tenth,
    study,
    turning_std,
)
from kdrun.words import read_flags


def section(*words: str) -> Any:
    (cell,) = compose_cells("study", ["study=rank", *words], read_flags([]), CONF)
    return cell.config.study


@pytest.fixture(scope="module")
def findings() -> Findings:
    """Two ranks, two seeds, the near-uniform and the peaked start, 200 steps."""
    words = ("study.losses=[fkl,rkl,jsd]", "study.ranks=[2,64]", "study.init_std=[0.02,1]", "study.num_seeds=2")
    values = section(*words, "study.num_steps=200").model_dump()
    values.pop("name")
    return study(**values, begin=lambda total: lambda count=1: None)


def test_reverse_kl_is_faster_from_near_uniform_starts_and_forward_kl_from_peaked_ones(findings: Findings) -> None:
    rows = [row for row in findings.tables["ahead"] if row["loss"] == "RKL"]
    assert len(rows) == 2 * 2 * 2  # starts, ranks, distances
    for row in rows:
        assert math.copysign(1, row["ahead"]) == (1 if row["init_std"] == 1 else -1)


def test_a_picture_a_start_and_a_distance_has_a_panel_a_rank(findings: Findings) -> None:
    names = {picture.name: picture for picture in findings.pictures}
    assert set(names) == {
        "probabilities_from_1", "probabilities_from_0.02", "weights_from_1", "weights_from_0.02", "order", "others",
    }  # fmt: skip
    assert [panel.title for panel in names["weights_from_1"].panels] == ["Teacher of rank 2", "Teacher of rank 64"]


def row(std: float, rank: int, ahead: float) -> dict[str, Any]:
    return {
        "distance": "weights",
        "init_std": std,
        "rank": rank,
        "ahead": ahead,
        "low": ahead - 0.1,
        "high": ahead + 0.1,
    }


def test_the_verdict_follows_the_measurements() -> None:
    def verdict(*values: float) -> str:
        return faster_claim(
            [row(std, rank, v) for std, v in zip((0.1, 1), values, strict=True) for rank in (2, 4)]
        ).judgement

    assert verdict(0.5, 0.5) == "holds"
    assert verdict(-0.5, -0.5) == "contradicted"
    assert verdict(0.05, -0.05) == "contradicted"  # their intervals hold 0
    assert verdict(-0.5, 0.5) == "holds only when the start's weights have a standard deviation of 1"
    assert faster_claim([row(1, 2, 0.5), row(1, 4, -0.5)]).verdict == "contradicted"  # at every rank


def test_the_turn_lies_between_two_starts_by_the_logarithm() -> None:
    rows = [row(0.01, 2, -1), row(0.1, 2, -1), row(10, 2, 1)]
    assert turning_std(rows, 2) == pytest.approx(1)
    assert turning_std(rows[:2], 2) is None


def test_teachers_have_their_rank_and_weights_of_one_spread() -> None:
    maps = draw_maps([2, 8, 64], num_seeds=3, teacher_std=0.25, seed=0)
    assert torch.linalg.matrix_rank(maps.teacher_MDV.double(), rtol=1e-6).tolist() == [2, 8, 64] * 3
    assert maps.teacher_MDV.std((1, 2)).mean().item() == pytest.approx(0.25, rel=0.1)


def test_the_distance_of_weights_does_not_see_what_softmax_does_not_see() -> None:
    teacher = torch.randn(1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifted = teacher + torch.arange(64.0)[:, None]
    contexts = torch.eye(64, dtype=torch.float64)
    assert torch.allclose((contexts @ shifted).softmax(-1), (contexts @ teacher).softmax(-1))
    assert row_centred_distance(shifted, teacher).item() == pytest.approx(0, abs=1e-9)
    moved = teacher.clone()
    moved[0, 5, :2] += torch.tensor([3.0, -4.0])
    assert row_centred_distance(moved, teacher).item() == pytest.approx(math.sqrt(25 - 1 / 64))


def test_fixed_contexts_are_learnt_and_the_weights_are_not() -> None:
    """64 contexts seen again and again: probabilities converge, the map off them does not as fresh ones would."""
    maps = draw_maps([8], num_seeds=1, teacher_std=0.25, seed=0)
    (forward,) = contenders(["fkl"])
    fixed, fresh = (
        fit_maps(forward, maps, 0.02, fresh=fresh, learning_rate=0.01, num_steps=300, num_seeds=1).distances
        for fresh in (False, True)
    )
    assert fixed["probabilities"][-1] < 0.05 * fixed["probabilities"][0]
    assert fixed["weights"][-1] > 0.3 * fixed["weights"][0]
    assert fresh["weights"][-1] < 0.1 * fresh["weights"][0]


def test_log_ratios_are_means_over_steps_and_stop_at_a_thousandth() -> None:
    slow, fast = torch.tensor([1.0, 0.5, 1e-5]), torch.tensor([1.0, 0.25, 1e-7])
    assert mean_log_ratio(slow, fast).item() == pytest.approx(math.log(2) / 3)


def test_steps_to_a_tenth_are_the_median_of_the_seeds() -> None:
    distances = torch.tensor([[1.0, 1.0, 1.0], [0.05, 0.5, 1.0], [0.01, 0.09, 1.0]])
    assert steps_to_tenth([0, 10, 20], distances) == 20
    assert steps_to_tenth([0, 10, 20], distances[:, 2:]) == math.inf


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("study.init_std=[1,0.02]", "study.init_std=[1.0, 0.02]: must grow"),
        ("study.losses=[rkl,akl]", "must hold fkl once"),
        ("study.ranks=[2,65]", "ranks"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(word: str, said: str) -> None:
    with pytest.raises(Exception, match=".") as caught:
        section(word)
    assert said in str(caught.value)
