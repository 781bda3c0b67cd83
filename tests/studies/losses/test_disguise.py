"""The learning rate in disguise, on fits that were also worked without the loop."""

import pytest
import torch
from scipy.stats import spearmanr

from kdrun.losses import make_loss
from kdrun.studies.losses import disguise
from kdrun.studies.losses.disguise import (
    KINDS,
    Weighed,
    agreement,
    disguise_claims,
    disguise_picture,
    distances_left,
    num_fits,
)
from kdrun.studies.losses.pairs import noisy_pairs

BETAS = (0.1, 0.5, 0.9)


def test_weighed_is_the_weighted_sum_of_cross_entropy_and_divergence() -> None:
    student_NV, teacher_NV = noisy_pairs(3, vocabulary=7, noise_std=1.0, seed=0)
    target_N = torch.tensor([0, 3, 6])
    loss = Weighed(make_loss("rkl"), weight=0.3, data_weight=0.7, target_N=target_N)
    cross_entropy_N = torch.nn.functional.cross_entropy(student_NV, target_N, reduction="none")
    expected_N = 0.7 * cross_entropy_N + 0.3 * make_loss("rkl")(student_NV, teacher_NV)
    torch.testing.assert_close(loss(student_NV, teacher_NV), expected_N)


def test_agreement_is_spearmans_correlation() -> None:
    left, right = [0.3, 0.1, 0.7, 0.2, 0.9], [1.0, 3.0, 0.5, 2.0, 2.5]
    assert agreement(left, right) == pytest.approx(spearmanr(left, right).statistic)
    assert agreement(left, left) == pytest.approx(1)


def test_sgd_feels_the_size_of_the_gradient_and_adam_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disguise, "NUM_STEPS", 30)
    monkeypatch.setattr(disguise, "NUM_CLASSES", 50)
    calls: list[int] = []
    rows = distances_left(BETAS, noise_std=1.0, seed=0, advance=lambda: calls.append(1))
    assert len(rows) == len(calls) == num_fits(BETAS) == 27
    found = {(row["setting"], row["kind"], row["beta"]): row["fkl"] for row in rows}
    plain, divided, matched = KINDS
    for beta in BETAS:
        assert found["sgd", matched, beta] < 0.7 * found["sgd", plain, beta]
        assert found["adam", divided, beta] == pytest.approx(found["adam", plain, beta], rel=0.02)
        assert found["adam-and-data", matched, beta] < 0.5 * found["adam-and-data", plain, beta]
    verdicts = {claim.key: claim.verdict for claim in disguise_claims(rows, noise_std=1.0)}
    assert verdicts["disguise-adam"] == "holds"
    assert verdicts["disguise-sgd"] == "contradicted"
    assert [len(panel.curves) for panel in disguise_picture(rows).panels] == [3, 3, 3]
    # were the matched order the same, the verdict would flip
    same = [{**row, "fkl": found[row["setting"], plain, row["beta"]]} for row in rows]
    assert {claim.verdict for claim in disguise_claims(same, noise_std=1.0)} == {"holds"}


def test_one_step_of_sgd_is_the_learning_rate_times_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disguise, "NUM_STEPS", 1)
    rows = distances_left((0.3,), noise_std=1.0, seed=0, advance=lambda: None)
    student_NV, teacher_NV = noisy_pairs(disguise.NUM_TOKENS, vocabulary=disguise.NUM_CLASSES, noise_std=1.0, seed=0)
    logits_NV = student_NV.clone().requires_grad_()
    log_q_NV, log_p_NV = logits_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    log_m_NV = torch.log(0.3 * log_p_NV.exp() + 0.7 * log_q_NV.exp())
    jsd = 0.3 * (log_p_NV.exp() * (log_p_NV - log_m_NV)).sum() + 0.7 * (log_q_NV.exp() * (log_q_NV - log_m_NV)).sum()
    (gradient_NV,) = torch.autograd.grad(jsd, logits_NV)
    forward_NV = (log_q_NV.exp() - log_p_NV.exp()).detach()
    for kind, factor in zip(KINDS, (1, 1 / 0.21, float(forward_NV.norm() / gradient_NV.norm())), strict=True):
        after_NV = (student_NV - disguise.SGD_LR * factor * gradient_NV).log_softmax(-1)
        left = (log_p_NV.exp() * (log_p_NV - after_NV)).sum(-1).mean()
        (row,) = (row for row in rows if (row["setting"], row["kind"]) == ("sgd", kind))
        assert row["fkl"] == pytest.approx(float(left), rel=1e-9)
