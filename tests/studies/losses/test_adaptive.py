"""AKL's weight: ends of mu, jumps, and gradients that are no slopes."""

import pytest
import torch

from kdrun.losses import make_loss
from kdrun.studies.contenders import contenders
from kdrun.studies.losses.adaptive import (
    akl_picture,
    field,
    field_claim,
    field_table,
    forward_weight,
    jump_claim,
    mu_claims,
    two_class_claim,
)
from kdrun.studies.losses.pairs import noisy_pairs


def test_on_two_classes_the_weight_is_one_half() -> None:
    assert two_class_claim().verdict == "holds"


def test_the_weight_of_three_classes_is_the_one_worked_by_hand() -> None:
    # p = (.6, .3, .1), q = (.2, .3, .5): head gap .4, tail gap 0 + .4; then q = (.5, .1, .4): .1 of .1 + .2 + .3
    p, q = torch.tensor([[0.6, 0.3, 0.1]] * 2), torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.1, 0.4]])
    torch.testing.assert_close(forward_weight((q.log(), p.log()), mu=0.5), torch.tensor([0.5, 1 / 6]))


def test_mu_ends_at_forward_kl_and_not_at_reverse_kl() -> None:
    pair = noisy_pairs(8, vocabulary=100, noise_std=1.0, seed=0)
    zero, one = mu_claims(pair)
    assert zero.verdict == "contradicted"
    q_NV, p_NV = (torch.softmax(x, dim=-1) for x in pair)
    gap_NV = (p_NV - q_NV).abs()
    share_N = gap_NV.gather(1, p_NV.argmax(-1, keepdim=True))[:, 0] / gap_NV.sum(-1)  # of the top class
    assert f"head=code: mean a {float(share_N.mean()):.3f}" in zero.measured
    assert one.judgement == "holds only when the head is read as code or paper"


def test_the_jump_is_the_weights_jump_times_the_difference_of_the_kls() -> None:
    claim = jump_claim((0.6, 0.3, 0.1))
    # teacher (.45, .45, .1), student (.1, .3, .6): gaps .35, .15, .5; the head is the first or the second of them
    tied, student = torch.tensor([[0.45, 0.45, 0.1]]).double().log(), torch.tensor([[0.1, 0.3, 0.6]]).double().log()
    fkl, rkl = (float(make_loss(name)(student, tied)) for name in ("fkl", "rkl"))
    assert claim.judgement == "holds only when the teacher stays as it is"
    assert f"{abs((0.35 - 0.15) * (fkl - rkl)):.1e} nats" in claim.measured


def test_only_akls_training_gradient_is_no_slope() -> None:
    rows = field_table(contenders(["fkl", "rkl", "jsd", "akl", "taid"]), seed=0)
    found = {row["loss"]: row for row in rows}
    assert found["AKL"]["asymmetry"] > 1e-3
    assert found["TAID"]["off_slope"] > 1  # of the printed value, whose target moves with the student
    assert max(found[label]["asymmetry"] for label in ("FKL", "RKL", "JSD", "TAID")) < 1e-8
    assert max(found[label]["off_slope"] for label in ("FKL", "RKL", "JSD")) < 1e-8
    assert field_claim(rows).judgement == "holds only when the loss is not AKL"
    assert field_claim([found["FKL"], found["TAID"]]).verdict == "holds"
    assert field_claim([found["AKL"]]).verdict == "contradicted"


def test_the_jacobian_of_forward_kl_is_symmetric_and_its_gradient_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    student_NV, teacher_NV = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    off_N, asymmetry_N = field(make_loss("fkl"), student_NV, teacher_NV)
    assert off_N.max() < 1e-8
    assert asymmetry_N.max() < 1e-8


def test_the_picture_shows_the_jump() -> None:
    picture = akl_picture(noisy_pairs(2, vocabulary=20, noise_std=1.0, seed=0), (0.6, 0.3, 0.1))
    akl = picture.panels[2].curves[3]
    steps = [abs(after - before) for before, after in zip(akl.y, akl.y[1:], strict=False)]
    assert akl.label == "AKL"
    assert max(steps) > 5 * sorted(steps)[-4]  # the crossing takes two steps: at the tie each class is half head
    assert max(picture.panels[0].surface.values) == pytest.approx(0.5)  # type: ignore[union-attr]
