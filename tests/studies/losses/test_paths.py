"""Ways to the teacher: forward KL's gradient in closed form, convexity where it is proven."""

import dataclasses

import pytest
import torch

from kdrun.studies.contenders import contenders
from kdrun.studies.losses.paths import (
    NUM_PLACES,
    Walk,
    on_the_way,
    path_claims,
    path_picture,
    path_table,
    walks,
    zipf_pairs,
)


@pytest.fixture(scope="module")
def found() -> list[Walk]:
    return walks(contenders(["fkl", "rkl", "tvd", "taid"]), vocabulary=60, seed=0)


def walk_of(found: list[Walk], name: str, way: str) -> Walk:
    return next(walk for walk in found if (walk.entrant.name, walk.way) == (name, way))


def test_forward_kls_gradient_falls_in_proportion_on_the_mixture(found: list[Walk]) -> None:
    walk = walk_of(found, "fkl", "mixture")  # |q - p| = (1 - s) |q0 - p|
    left = 1 - torch.linspace(0, 1, NUM_PLACES, dtype=torch.float64)
    torch.testing.assert_close(walk.norm_NS, walk.norm_NS[:, :1] * left, rtol=1e-9, atol=1e-12)


def test_the_ways_lead_from_the_student_to_the_teacher() -> None:
    student_NV, teacher_NV = zipf_pairs(3, vocabulary=10, seed=0)
    assert torch.equal(student_NV.sort(-1).values, teacher_NV.sort(-1).values)
    for way in ("mixture", "logits"):
        places = on_the_way(student_NV, teacher_NV, way=way)
        for place_NV, end_NV in ((places[0], student_NV), (places[-1], teacher_NV)):
            torch.testing.assert_close(torch.softmax(place_NV, -1), torch.softmax(end_NV, -1))


def test_convex_where_it_is_proven_and_not_elsewhere(found: list[Walk]) -> None:
    convex = {(row["loss"], row["way"]): row["convex"] for row in path_table(found)}
    assert convex["FKL", "mixture"] and convex["RKL", "mixture"] and convex["TVD", "mixture"]
    assert convex["FKL", "logits"]
    assert not convex["RKL", "logits"] and not convex["TAID", "mixture"]
    mixtures, logits = path_claims(found)
    assert (mixtures.verdict, logits.verdict) == ("holds", "holds")
    assert "not convex on these ways: TAID" in mixtures.measured


def test_a_hill_flips_the_verdict(found: list[Walk]) -> None:
    hill = walk_of(found, "fkl", "mixture")
    bent_NS = hill.nats_NS.clone()
    bent_NS[0, 20] *= 1.5
    claims = path_claims([dataclasses.replace(hill, nats_NS=bent_NS)])
    assert [claim.verdict for claim in claims] == ["contradicted"]
    assert path_claims([walk_of(found, "taid", "mixture")]) == []  # nothing is proven of it


def test_the_picture_leaves_out_the_teacher_itself(found: list[Walk]) -> None:
    picture = path_picture(found, vocabulary=60)
    assert len(picture.panels) == 4
    assert all(min(curve.y) > 0 and len(curve.x) == NUM_PLACES - 1 for p in picture.panels for curve in p.curves)
