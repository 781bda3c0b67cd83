"""Every loss against the 247 reference cases: float64 values and gradients, computed outside this project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.losses import make_loss

pytestmark = pytest.mark.usefixtures("either_way")

VECTORS = Path(__file__).parents[3] / "shared" / "reference" / "divergences.npz"


def _cases() -> list[Any]:
    if not VECTORS.exists():
        reason = f"the reference vectors are not beside this checkout: {VECTORS}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="reference_vectors_not_found")]
    with np.load(VECTORS) as vectors:
        return [pytest.param(case, id=case["key"]) for case in json.loads(str(vectors["index"]))]


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    with np.load(VECTORS) as archive:
        return dict(archive)


@pytest.mark.parametrize("case", _cases())
def test_float32_value_and_gradient_agree_with_the_reference(case: dict[str, Any], vectors: dict[str, np.ndarray]):
    student, teacher, mask = (
        torch.from_numpy(vectors[f"{case['regime']}.{key}"]) for key in ("student_logits", "teacher_logits", "mask")
    )
    student = student.clone().requires_grad_()
    params = {"t_start": case["params"]["t"]} if case["divergence"] == "taid" else case["params"]
    nats = make_loss(case["divergence"], **params)(student, teacher)
    nats[mask].mean().backward()

    reference = torch.from_numpy(vectors[f"{case['key']}.value"])
    assert nats.dtype == torch.float32
    assert ((nats.double() - reference).abs() <= 1e-4 * reference.abs() + 2e-6).all()
    if case["regime"] == "wide":
        norms = torch.from_numpy(vectors[f"{case['key']}.grad_norm"])
        assert ((student.grad.double().norm(dim=-1) - norms).abs() <= 2e-3 * norms + 1e-7).all()
    else:
        gradient = torch.from_numpy(vectors[f"{case['key']}.grad"])
        assert (student.grad - gradient).norm() <= 2e-3 * gradient.norm() + 1e-7


@pytest.mark.skipif(not VECTORS.exists(), reason=f"the reference vectors are not beside this checkout: {VECTORS}")
def test_the_reference_holds_247_cases_of_twelve_losses():
    cases = [case.values[0] for case in _cases()]
    assert len(cases) == 247
    assert len({case["divergence"] for case in cases}) == 12
