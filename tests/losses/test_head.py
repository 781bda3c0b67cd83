"""The head without a sort against the head by a float64 sort: the same entries, exactly."""

import math

import pytest
import torch
from torch import Tensor

from kdrun.losses.head import head_and_tail_gaps, head_share
from kdrun.losses.head_border import WALK, head_border

pytestmark = pytest.mark.usefixtures("either_way")

SHAPES = {  # spread of normal logits: name, (rows, vocabulary)
    "flat": (1.0, (20, 5000)),
    "flatter": (0.05, (20, 5000)),
    "nearly_uniform": (1e-4, (20, 5000)),
    "uniform": (0.0, (2, 5000)),
    "peaked": (3.0, (40, 5000)),
    "certain": (30.0, (20, 5000)),
    "wide_flat": (1.0, (6, 50257)),
    "wide_peaked": (3.0, (6, 50257)),
    "tiny": (2.0, (50, 3)),
    "one_entry": (1.0, (3, 1)),
}


def by_sort(p_NV: Tensor, mu: float, head: str) -> tuple[Tensor, Tensor]:
    """(share_NV, doubtful_N): the definition in float64; doubtful where a prefix has a mass within 1e-6 of mu."""
    sorted_NV = p_NV.double().sort(dim=-1, descending=True).values
    mass_NV = sorted_NV.cumsum(-1)
    size_N = (mass_NV <= mu).sum(-1).clamp(min=1) if head == "code" else (mass_NV < mu).sum(-1) + 1
    size_N = size_N.clamp(max=p_NV.shape[-1])
    last_N1 = sorted_NV.gather(-1, size_N[:, None] - 1)
    above_NV, tied_NV = p_NV > last_N1, p_NV == last_N1
    fraction_N = (size_N - above_NV.sum(-1)).double() / tied_NV.sum(-1)
    return above_NV + fraction_N[:, None] * tied_NV, ((mass_NV - mu).abs() < 1e-6).any(-1)


def assert_same_head(p_NV: Tensor, mu: float, head: str) -> None:
    expected_NV, doubtful_N = by_sort(p_NV, mu, head)
    found_NV = head_share(p_NV, mu=mu, head=head)
    assert found_NV.dtype == p_NV.dtype
    # 1 and 0 exactly, fractions as far as the dtype goes
    torch.testing.assert_close(found_NV.double()[~doubtful_N], expected_NV[~doubtful_N], rtol=1e-6, atol=0)


@pytest.mark.parametrize("mu", [0.05, 0.5, 0.93])
@pytest.mark.parametrize("head", ["code", "paper"])
@pytest.mark.parametrize("shape", SHAPES)
def test_head_is_that_of_a_sort(shape, head, mu, random_logits):
    spread, size = SHAPES[shape]
    assert_same_head(random_logits(*size, spread=spread).float().softmax(-1), mu, head)


@pytest.mark.parametrize("head", ["code", "paper"])
def test_head_is_that_of_a_sort_in_float64(head, random_logits):
    assert_same_head(random_logits(20, 5000, spread=1.0).softmax(-1), 0.5, head)


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("head", ["code", "paper"])
def test_head_is_that_of_a_sort_where_many_entries_are_tied(head, spread, random_logits):
    """bfloat16 logits: groups of hundreds of ties, more than a step of the walk sees."""
    logits = random_logits(6, 50257, spread=spread).bfloat16().float()
    assert max(logits[0].unique(return_counts=True)[1]) > WALK
    p = logits.softmax(-1)
    assert_same_head(p, 0.5, head)


@pytest.mark.parametrize("head", ["code", "paper"])
def test_head_is_that_of_a_sort_where_entries_are_impossible(head, random_logits):
    """-inf logits, and rows whose mass is below 1, even below mu, as entries were dropped for the student's sake."""
    logits = random_logits(12, 1000)
    logits[:4, 7:] = logits[4:8, 100:900] = -math.inf
    p = logits.float().softmax(-1)
    p[8:, ::2] = 0
    p[10:, 3:] = 0
    assert (p.sum(-1) < 0.6).any()
    assert_same_head(p, 0.6, head)


def test_two_levels_with_the_border_deep_inside_the_lower_one():
    """One entry of 0.4 above 3000 tied ones: mu = 0.5001 has room for 500 of them."""
    p = torch.full((1, 3001), 0.6 / 3000)
    p[0, 1234] = 0.4
    share = head_share(p, mu=0.5001)
    assert share[0, 1234] == 1
    assert share[0, 0].item() * 3000 == pytest.approx(500)


def test_head_of_a_power_law():
    """p ~ 1/rank, as word frequencies: long steps, where normal logits would have made short ones."""
    p = 1 / torch.arange(1, 50258, dtype=torch.float64)
    for mu in (0.1, 0.5, 0.9, 0.999):
        assert_same_head((p / p.sum()).float()[None], mu, "code")


@pytest.mark.parametrize("spread", [0.05, 1.0, 3.0, 10.0])
def test_few_passes_over_the_vocabulary_are_needed(spread, random_logits, monkeypatch, either_way):
    if either_way == "compiled":
        pytest.skip("its passes are not seen from here")
    passes = []
    from kdrun.losses import head_border as module

    mass_above = module._mass_above
    monkeypatch.setattr(module, "_mass_above", lambda *args: passes.append(1) or mass_above(*args))
    head_border(random_logits(8, 50257, spread=spread).float().softmax(-1), mu=0.5, reaches=False)
    assert len(passes) <= 8


@pytest.mark.parametrize("spread", [0.05, 1.0, 3.0])
def test_gaps_are_those_of_the_definition_whatever_the_number_of_threads(spread, random_logits):
    p, q = (random_logits(7, 5003, seed=seed, spread=spread).float().softmax(-1) for seed in (0, 1))
    gap_NV, share_NV = (p.double() - q).abs(), by_sort(p, 0.5, "code")[0]
    expected = (share_NV * gap_NV).sum(-1), ((1 - share_NV) * gap_NV).sum(-1)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(torch.stack(head_and_tail_gaps(p, q, mu=0.5)))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0].double(), torch.stack(expected), rtol=2e-6, atol=1e-7)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
