"""The simplex pictures against slopes worked by hand."""

import math

import pytest
import torch

from kdrun.studies.contenders import contenders
from kdrun.studies.losses.pairs import value_and_gradient
from kdrun.studies.losses.simplex import arrows, grid, moved, over, triangles, two_classes


def test_value_and_slope_on_two_classes_are_those_worked_by_hand() -> None:
    fkl, rkl, jsd = contenders(["fkl", "rkl", "jsd"])
    q, p = torch.tensor([[0.25, 0.75]], dtype=torch.float64), (0.5, 0.5)
    ratio = math.log(0.25 / 0.75)
    expected = [
        (fkl, 0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.25 - 0.5),  # q - p
        (rkl, 0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.25 * 0.75 * ratio),  # q (1 - q) (logit q - logit p)
        (
            jsd,
            0.25 * (math.log(0.5 / 0.375) + math.log(0.5 / 0.625))
            + 0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)),
            0.5 * 0.25 * 0.75 * math.log(0.25 / 0.375 / (0.75 / 0.625)),
        ),
    ]
    for entrant, nats, slope in expected:
        nats_N, slope_N = over(entrant, q.log(), p)
        assert (nats_N.item(), slope_N.item()) == (pytest.approx(nats, rel=1e-12), pytest.approx(slope, rel=1e-12))


def test_arrows_show_where_a_small_step_of_the_logits_moves_the_student() -> None:
    q_NV, teacher_V = grid(7, 0.05), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    loss = contenders(["rkl"])[0].loss()
    _, gradient_NV = value_and_gradient(loss, q_NV.log(), teacher_V.expand_as(q_NV))
    after_NV = torch.softmax(q_NV.log() - 1e-6 * gradient_NV, dim=-1)
    torch.testing.assert_close(moved(q_NV, gradient_NV), (after_NV - q_NV) / 1e-6, atol=1e-6, rtol=1e-4)
    for _, _, dx, dy in arrows(q_NV, gradient_NV):
        assert math.hypot(dx, dy) == pytest.approx(1)


def test_a_student_that_does_not_move_has_no_arrow() -> None:
    q_NV = grid(4, 0.1)
    assert arrows(q_NV, torch.zeros_like(q_NV)) == []


def test_the_grid_covers_the_triangle_with_distributions() -> None:
    q_NV = grid(5, 0.02)
    assert len(q_NV) == 15
    torch.testing.assert_close(q_NV.sum(-1), torch.ones(15, dtype=torch.float64))
    assert q_NV.min() == pytest.approx(0.02)


def test_the_pictures_have_every_loss_once_a_column_or_triangle() -> None:
    entrants = contenders(["fkl", "rkl", "akl", "jsd", "tvd", {"name": "akl", "mu": 0.3}])
    flat = two_classes(entrants, (0.6, 0.9))
    assert flat.columns == 4
    assert len(flat.panels) == 8  # two groups of three losses, value and slope, two teachers
    assert [curve.label for curve in flat.panels[4].curves] == ["JSD", "TVD", "AKL mu=0.3"]
    assert [panel.title for panel in triangles(entrants, (0.6, 0.3, 0.1)).panels][-1] == "AKL mu=0.3"
