import math

import pytest
import torch

from kdrun.losses import divergence_diagnostics, make_loss

pytestmark = pytest.mark.usefixtures("either_way")

TEACHER = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()


def test_values_by_hand_for_a_uniform_student():
    values = {key: value.item() for key, value in divergence_diagnostics(torch.zeros(1, 5), TEACHER).items()}
    assert values == pytest.approx(
        {
            "fkl": 0.217117,
            "rkl": 0.253702,
            "jsd": 0.056404,
            "tvd": 0.3,
            "teacher_entropy": math.log(5) - 0.217117,
            "student_entropy": math.log(5),
            "head_gap": 0.2,
            "tail_gap": 0.4,
            "akl_weight": 1 / 3,
            "top1_agreement": 1.0,  # the first of the five equal entries
        },
        abs=1e-5,
    )


def test_values_are_those_of_the_losses(random_logits):
    student, teacher = random_logits(7, 40, seed=1), random_logits(7, 40, seed=2)
    values = divergence_diagnostics(student, teacher, mu=0.3)
    for name in ("fkl", "rkl", "jsd", "tvd"):
        torch.testing.assert_close(values[name], make_loss(name)(student, teacher))
    akl = values["akl_weight"] * values["fkl"] + (1 - values["akl_weight"]) * values["rkl"]
    torch.testing.assert_close(akl, make_loss("akl", mu=0.3)(student, teacher))


def test_gaps_sum_to_twice_the_total_variation(random_logits):
    values = divergence_diagnostics(random_logits(7, 40, seed=1), random_logits(7, 40, seed=2))
    torch.testing.assert_close(values["head_gap"] + values["tail_gap"], 2 * values["tvd"])


def test_top1_agreement_is_one_where_both_would_choose_the_same_token():
    student = torch.tensor([[1.0, 2.0, 0.0], [5.0, 1.0, 0.0]])
    teacher = torch.tensor([[0.0, 9.0, 1.0], [1.0, 2.0, 0.0]])
    assert divergence_diagnostics(student, teacher)["top1_agreement"].tolist() == [1.0, 0.0]


def test_equal_models_give_finite_values(random_logits):
    logits = random_logits(3, 40).bfloat16()
    values = divergence_diagnostics(logits, logits)
    assert all(
        value.shape == (3,) and value.dtype == torch.float32 and value.isfinite().all() for value in values.values()
    )
    assert values["akl_weight"].tolist() == [0.5, 0.5, 0.5]


def test_no_graph_is_kept(random_logits):
    student = random_logits(3, 40).requires_grad_()
    assert not any(
        value.requires_grad for value in divergence_diagnostics(student, random_logits(3, 40, seed=1)).values()
    )
