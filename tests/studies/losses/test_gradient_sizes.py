"""Sizes of gradients beside forward KL's, against their limits in closed form."""

import pytest

from kdrun.losses import make_loss
from kdrun.studies.contenders import contenders
from kdrun.studies.losses.gradient_sizes import (
    arrival_claims,
    distances,
    gkd_claim,
    size_beside_fkl,
    size_on_arrival,
    size_picture,
    size_table,
    span_table,
    spans,
    sweep_claims,
    sweep_table,
)
from kdrun.studies.losses.pairs import in_panels, noisy_pairs

LOSSES = [
    "fkl", "rkl", "fkl_rkl", "akl", "alpha", "skl", "srkl", "taid", "amid", {"name": "ab", "alpha": 0.3, "beta": 0.7},
    {"name": "jsd", "beta": 0.2}, {"name": "jsd", "beta": 0}, {"name": "amid", "lam": 0.3, "order": "qr"},
    {"name": "amid", "lam": 0.3, "base": "rkl", "order": "rq"}, {"name": "taid", "t_start": 0.7},
    {"name": "skl", "alpha": 0.6},
]  # fmt: skip


@pytest.mark.parametrize("spec", LOSSES, ids=str)
def test_the_size_on_arrival_is_the_computed_one(spec: str | dict) -> None:
    loss = contenders([spec])[0].loss()
    arrived = noisy_pairs(8, vocabulary=50, noise_std=1e-4, seed=0)
    assert size_beside_fkl(loss, arrived) == pytest.approx(size_on_arrival(loss), rel=1e-3)


def test_losses_without_a_constant_have_none() -> None:
    for name in ("tvd", "gap", "ab"):
        assert size_on_arrival(make_loss(name)) is None


def test_the_arrival_claim_flips_with_the_measurement() -> None:
    rows = [{"loss": "JSD", "arrived": 0.25, "predicted": 0.25}, {"loss": "TVD", "arrived": 9.0, "predicted": None}]
    assert [claim.verdict for claim in arrival_claims(rows)] == ["holds"]
    assert [claim.verdict for claim in arrival_claims([{**rows[0], "arrived": 0.2}])] == ["contradicted"]
    assert arrival_claims(rows[1:]) == []


def test_jsd_behaves_as_the_kls_in_direction_only() -> None:
    near = gkd_claim(noisy_pairs(8, vocabulary=50, noise_std=0.3, seed=0))
    assert near.judgement == "holds only when the gradient is divided by beta (1 - beta)"
    assert "norm 0.0099 of it" in near.measured
    assert gkd_claim(noisy_pairs(8, vocabulary=50, noise_std=12.0, seed=0)).verdict == "contradicted"


def test_a_sweep_over_beta_changes_the_learning_rate_and_one_over_mu_does_not() -> None:
    pairs = distances((1.0, 0.01), num=8, vocabulary=50, seed=0)
    rows = sweep_table((0.1, 0.5, 0.9), pairs)
    found = spans(rows, (1.0, 0.01))
    assert found["jsd", "beta"][0.01] == pytest.approx(0.25 / 0.09, rel=0.02)  # beta (1 - beta)
    assert found["skl", "alpha"][0.01] == pytest.approx(81, rel=0.05)  # (1 - alpha)^2
    assert found["taid", "t_start"][0.01] == pytest.approx(9, rel=0.02)  # t
    assert found["akl", "mu"][0.01] == pytest.approx(1, rel=0.02)
    verdicts = {claim.key: claim.verdict for claim in sweep_claims(rows, (1.0, 0.01))}
    assert verdicts["sweep-jsd-beta"] == "contradicted"
    assert verdicts["sweep-akl-mu"] == "holds"
    narrow = sweep_table((0.45, 0.5, 0.55), pairs)
    assert {c.key: c.verdict for c in sweep_claims(narrow, (1.0, 0.01))}["sweep-jsd-beta"] == "holds"
    assert len(span_table(rows, (1.0, 0.01))) == 12


def test_the_table_and_the_picture_have_every_loss() -> None:
    entrants = contenders(["fkl", "jsd", "tvd"])
    pairs = distances((0.5, 2.0), num=4, vocabulary=20, seed=0)
    assert list(pairs) == [2.0, 0.5]
    rows = size_table(entrants, pairs, pairs[0.5])
    assert rows[0]["noise_2"] == 1
    (panel,) = size_picture(entrants, num=4, vocabulary=20, seed=0).panels
    assert [curve.label for curve in panel.curves] == ["FKL", "JSD", "TVD"]


def test_panels_share_the_losses_out_evenly() -> None:
    assert [len(group) for group in in_panels(range(13))] == [5, 4, 4]
    assert [len(group) for group in in_panels(range(5))] == [5]
    assert [x for group in in_panels(range(11)) for x in group] == list(range(11))
