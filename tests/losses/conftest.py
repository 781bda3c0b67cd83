"""What the loss tests share: every loss at typical parameters, and random logits."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrun.losses import Loss, head, head_border, make_loss
from kdrun.native import compiled

TYPICAL: list[tuple[str, dict[str, Any]]] = [
    ("fkl", {}),
    ("rkl", {}),
    ("fkl_rkl", {"weight": 0.3}),
    ("akl", {}),
    ("akl", {"mu": 0.3, "head": "paper"}),
    ("akl", {"mu": 0.1, "head": "pointwise", "reversed": True}),
    ("jsd", {}),
    ("jsd", {"beta": 0.1}),
    ("tvd", {}),
    ("skl", {}),
    ("srkl", {}),
    ("ab", {}),
    ("ab", {"alpha": 0.5, "beta": 0.0}),
    ("ab", {"alpha": 0.0, "beta": 0.0}),
    ("ab", {"alpha": 0.3, "beta": -0.3}),
    ("ab", {"alpha": -0.1, "beta": -0.2}),
    ("alpha", {}),
    ("alpha", {"alpha": 1.0}),
    ("taid", {}),
    ("amid", {}),
    ("amid", {"alpha": 3.0, "lam": 0.4, "order": "rq"}),
    ("amid", {"alpha": 1.0, "lam": 0.3, "base": "rkl", "order": "qr"}),
    ("amid", {"base": "ab", "order": "rp"}),
    ("gap", {"head_weight": 2.0}),
]


def _name(case: tuple[str, dict[str, Any]]) -> str:
    name, params = case
    return "-".join([name, *(f"{key}={value}" for key, value in params.items())])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits, and made these tests 30 times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=TYPICAL, ids=_name)
def divergence(request: pytest.FixtureRequest) -> Loss:
    """Every loss that compares with a teacher, at typical parameters."""
    name, params = request.param
    return make_loss(name, **params)


@pytest.fixture(params=[*TYPICAL, ("sft", {})], ids=_name)
def loss(request: pytest.FixtureRequest) -> Loss:
    """Every loss at typical parameters."""
    name, params = request.param
    return make_loss(name, **params)


@pytest.fixture
def random_logits() -> Callable[..., Tensor]:
    """random_logits(*shape, seed=0, spread=2.0): float64 normal logits; the same for the same seed."""

    def make(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture(params=["compiled", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The head by the compiled search and by the one in torch."""
    if request.param == "torch":
        for module in (head, head_border):
            monkeypatch.setattr(module, "compiled_for", lambda p_NV: None)
    elif compiled("head_border") is None:
        pytest.skip("no C compiler")
    return request.param
