"""Limits of the losses' parameters: the verdict, and the chi^2 ends against their textbook form."""

import dataclasses

import pytest
import torch

from kdrun.losses import make_loss
from kdrun.studies.losses import limits as module
from kdrun.studies.losses.limits import (
    deviation,
    identity_table,
    limit_claims,
    limit_picture,
    limit_table,
    limits,
    tends,
)
from kdrun.studies.losses.pairs import noisy_pairs


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return noisy_pairs(4, vocabulary=50, noise_std=1.0, seed=3)


def test_all_limits_and_identities_hold(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    claims = limit_claims(limit_table(pair), identity_table(pair))
    assert [claim.key for claim in claims] == [f"limits-{key}" for key in module.STATEMENTS]
    assert {claim.verdict for claim in claims} == {"holds"}
    assert all(claim.proven for claim in claims)


def test_a_wrong_end_flips_the_verdict(
    pair: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [dataclasses.replace(limit, scale=lambda d: 2 * d) if limit.key == "jsd" else limit for limit in limits()]
    monkeypatch.setattr(module, "limits", lambda: wrong)
    verdicts = {claim.key: claim.verdict for claim in limit_claims(limit_table(pair), identity_table(pair))}
    assert verdicts.pop("limits-jsd") == "contradicted"
    assert set(verdicts.values()) == {"holds"}


def test_skewed_kls_fade_as_half_of_chi_squares(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    q_NV, p_NV = (torch.softmax(x, dim=-1) for x in pair)
    ends = {limit.words.split()[0]: limit.end for limit in limits() if limit.key == "skew" and "chi" in limit.words}
    torch.testing.assert_close(ends["SKL"](*pair), 0.5 * ((q_NV - p_NV).square() / p_NV).sum(-1))
    torch.testing.assert_close(ends["SRKL"](*pair), 0.5 * ((q_NV - p_NV).square() / q_NV).sum(-1))


def test_tends_wants_small_and_falling_deviations() -> None:
    assert tends([0.5, 0.05, 0.005, 5e-4, 5e-5])
    assert not tends([0.5, 0.05, 0.05, 5e-4, 5e-5])  # stalls
    assert not tends([0.5, 0.4, 0.3, 0.2, 0.1])  # does not arrive
    assert tends([1e-12] * 5)  # rounding


def test_deviation_is_relative_and_absolute_from_nothing() -> None:
    assert deviation(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1)
    assert deviation(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)) == 5


def test_the_picture_meets_the_kls_at_the_ends(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    panels = {panel.title: panel for panel in limit_picture(pair, noise_std=1.0).panels}
    fkl, rkl = (float(make_loss(name)(*pair).mean()) for name in ("fkl", "rkl"))
    skl, srkl = panels["skewed KLs begin at KL"].curves
    assert (skl.y[0], srkl.y[0]) == (pytest.approx(fkl), pytest.approx(rkl))
    assert panels["JSD fades at both ends"].curves[2].y == (pytest.approx(fkl), pytest.approx(rkl))
