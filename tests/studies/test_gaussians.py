"""The Gaussians of the blog: reference figures of studies.md, and closed forms."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.config.study import GaussiansStudy
from kdrun.losses import make_loss
from kdrun.studies.findings import Findings
from kdrun.studies.gaussians.claims import End, Separation, covering_claim, turning_distance
from kdrun.studies.gaussians.fits import SPACING, density_V, fit_gaussians, log_density_NV, points_V, stillness
from kdrun.studies.gaussians.study import reverse_kl_by_distance, state_of, study
from kdrun.words import read_flags


def section(*words: str) -> GaussiansStudy:
    (cell,) = compose_cells("study", ["study=gaussians", *words], read_flags([]), CONF)
    return cell.config.study  # type: ignore[no-any-return]


def run(*words: str) -> Findings:
    values = section(*words).model_dump()
    values.pop("name")
    return study(**values, begin=lambda total: lambda count=1: None)


def claims(findings: Findings) -> dict[str, Any]:
    return {claim.key: claim for claim in findings.claims}


def mixture(means: list[float], sigma: float) -> torch.Tensor:
    means_1K = torch.tensor([means], dtype=torch.float64)
    return log_density_NV(means_1K, torch.full_like(means_1K, sigma), torch.full_like(means_1K, 1 / len(means)))[0]


@pytest.fixture(scope="module")
def findings() -> Findings:
    """The starts that studies.md names, and few others; they have arrived long before its 1500 steps."""
    words = ("study.start_means=[-1,0.1,1,2]", "study.start_sigmas=[1]", "study.start_half_gaps=[0.5,3]")
    return run(*words, "study.num_steps=600")


def test_the_density_of_a_mixture_is_scipys() -> None:
    x = points_V().numpy()
    expected = 0.5 * stats.norm.pdf(x, -2, 0.8) + 0.5 * stats.norm.pdf(x, 2.5, 0.8)
    found = density_V(mixture([-2, 2.5], 0.8))
    assert found.numpy() == pytest.approx(expected, abs=1e-9)
    assert float(found.sum()) * SPACING == pytest.approx(1)


def test_one_gaussian_ends_where_studies_md_says(findings: Findings) -> None:
    ends = {(row["loss"], row["start_mean"]): row for row in findings.tables["one_gaussian"]}
    for mean in (-1, 0.1, 1, 2):
        assert (ends["FKL", mean]["mean"], ends["FKL", mean]["sigma"]) == pytest.approx((0.25, 2.40), abs=0.005)
        assert ends["FKL", mean]["state"] == "both modes"
    for mean, place in ((-1, (-1.98, 0.83)), (0.1, (0.26, 2.10)), (1, (0.26, 2.10))):
        assert (ends["RKL", mean]["mean"], ends["RKL", mean]["sigma"]) == pytest.approx(place, abs=0.005)
    assert ends["RKL", 2]["state"] == "right mode"


def test_two_gaussians_take_the_steps_studies_md_says(findings: Findings) -> None:
    steps = {(row["loss"], row["start_half_gap"]): row for row in findings.tables["two_gaussians"]}
    assert steps["FKL", 0.5]["steps_to_tvd_0.02"] == pytest.approx(242, abs=2)
    assert steps["RKL", 0.5]["steps_to_tvd_0.02"] == pytest.approx(146, abs=2)
    assert steps["FKL", 3]["steps_to_tvd_0.02"] < steps["RKL", 3]["steps_to_tvd_0.02"]
    assert all(row["tvd"] < 0.02 for row in steps.values())


def test_what_depends_on_the_start_holds_only_for_the_starts_it_names(findings: Findings) -> None:
    found = claims(findings)
    assert found["forward_covers"].verdict == "holds"
    assert found["reverse_seeks"].judgement == "holds only when the start's mean is -1 or 2 at sigma 1"
    assert found["forward_first"].judgement == "holds only when the start's half gap is 3 at sigma 1"
    assert found["two_fit"].verdict == "holds"
    assert found["only_modes_rest"].verdict == "contradicted"
    assert found["mode_is_best"].judgement == "holds only when the modes are more than 5.6 of their sigmas apart"


def test_verdicts_flip_where_the_modes_are_one_hill_and_starts_are_on_modes() -> None:
    near = claims(run("study.teacher_means=[-0.5,0.5]", "study.start_means=[-1,1]", "study.start_sigmas=[1]",
                      "study.start_half_gaps=[0.5,1]", "study.num_steps=250"))  # fmt: skip
    assert near["reverse_seeks"].verdict == "contradicted"
    far = claims(run("study.start_means=[-2,2.5]", "study.start_sigmas=[1]", "study.start_half_gaps=[0.5,1]",
                     "study.num_steps=250"))  # fmt: skip
    assert far["reverse_seeks"].verdict == far["only_modes_rest"].verdict == "holds"
    assert far["forward_first"].verdict == "contradicted"


def test_forward_kl_matches_the_moments_of_the_teacher() -> None:
    """In one Gaussian forward KL is least at the teacher's mean and variance."""
    teacher_V = mixture([-1, 1.5], 0.5)
    ones_11 = torch.ones(1, 1, dtype=torch.float64)
    path = fit_gaussians(make_loss("fkl"), 0 * ones_11, ones_11, teacher_V[None], learning_rate=0.02, num_steps=500)
    assert float(path.means_SNK[-1]) == pytest.approx(0.25, abs=1e-6)
    assert float(path.sigmas_SNK[-1]) == pytest.approx(math.sqrt(0.25 + 1.25**2), abs=1e-4)


def test_stillness_is_the_closed_form_for_one_gaussian_against_another() -> None:
    """RKL(N(m, s) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s: Hessian diag(1, 2 s^2) in (m, log s)."""
    gradient, curvature = stillness(make_loss("rkl"), 0.3, 0.6, mixture([0.0], 1.0))
    assert gradient == pytest.approx(math.hypot(0.3, 0.6**2 - 1), abs=1e-6)
    assert curvature == pytest.approx(2 * 0.6**2, abs=1e-5)


def test_states_are_named_by_the_modes_within_two_sigmas() -> None:
    assert [state_of(mean, sigma, (-2, 2.5)) for mean, sigma in ((0.25, 2.4), (-2, 0.8), (2.4, 0.8), (0, 0.5))] == [
        "both modes", "left mode", "right mode", "neither",
    ]  # fmt: skip


def test_a_place_over_both_modes_contradicts_only_if_it_is_a_minimum_at_rest() -> None:
    end = End("RKL", 1, 0, 0.26, 2.1, 0.69, gradient=1e-9, curvature=0.2, state="both modes")
    verdicts = [
        covering_claim([case]).verdict
        for case in (end, replace(end, curvature=-0.1), replace(end, gradient=1e-2), replace(end, state="left mode"))
    ]
    assert verdicts == ["contradicted", "holds", "doubtful", "holds"]


def test_reverse_kl_far_from_the_other_mode_is_log_2_and_the_turn_lies_between_its_neighbours() -> None:
    found = reverse_kl_by_distance([3, 5.5, 5.75, 8])
    assert [each.two_places for each in found] == [False, True, True, True]
    assert found[-1].nats_on_mode == pytest.approx(math.log(2), abs=2e-4)
    assert all(each.curvature_over_both > 0 and each.gradient_over_both < 1e-6 for each in found)
    assert 5.5 < turning_distance(found) < 5.75
    worked = [Separation(4, 0.5, 0.6, 2, 0, 1), Separation(5, 0.9, 0.6, 2.5, 0, 1)]
    assert turning_distance(worked) == pytest.approx(4.25)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("study.teacher_means=[2,-2]", "study.teacher_means=[2.0, -2.0]: must be the left mode"),
        ("study.teacher_means=[-7,2]", "to the ends of the line, -8 and 8"),
        ("study.losses=[fkl]", "must hold rkl once"),
        ("study.start_means=[1,0]", "study.start_means=[1.0, 0.0]: must grow"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(word: str, said: str) -> None:
    with pytest.raises(Exception, match=".") as caught:
        section(word)
    assert said in str(caught.value)
