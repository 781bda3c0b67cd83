"""Rows in groups of like length: the same scored tokens and the same gradient, with less padding."""

import itertools

import numpy as np
import pytest
import torch

from kdrun.data import batch as module
from kdrun.data.batch import cheapest_cuts, make_batch
from kdrun.data.scored import collate, scored_positions
from kdrun.models.heads import scored_hidden_states
from tests.training.conftest import END, encoded, tiny


def padded_cost(lengths: list[int], ends: list[int], cost: int) -> int:
    starts = [0, *ends[:-1]]
    return sum((end - start) * lengths[end - 1] + cost for start, end in zip(starts, ends, strict=True))


@pytest.mark.parametrize("cost", [0, 3, 10, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_way_to_cut_is_cheaper(seed: int, cost: int) -> None:
    """Against every partition of eight rows."""
    lengths = sorted(np.random.default_rng(seed).integers(1, 30, 8).tolist())
    every = [[*cuts, 8] for size in range(8) for cuts in itertools.combinations(range(1, 8), size)]
    best = min(padded_cost(lengths, ends, cost) for ends in every)
    assert padded_cost(lengths, cheapest_cuts(lengths, cost=cost), cost) == best


def test_equal_rows_stay_together_and_a_dear_pass_keeps_all_together() -> None:
    assert cheapest_cuts([7, 7, 7], cost=1) == [3]
    assert cheapest_cuts([1, 2, 300], cost=10_000) == [3]
    assert cheapest_cuts([10, 10, 300], cost=128) == [2, 3]
    assert cheapest_cuts([], cost=5) == []


def test_every_scored_token_is_there_once_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.GROUP_COST_TOKENS, "cpu", 2)
    rows = encoded(20)
    batch = make_batch(rows, [3, 17, 5, 11, 0], pad_id=END, device="cpu")
    assert sorted(batch.rows) == [0, 3, 5, 11, 17] and len(batch.groups) > 1
    expected = [rows.row(i)[0][rows.row(i)[1] :] for i in batch.rows]
    assert batch.target_N.tolist() == np.concatenate(expected).tolist()
    assert batch.num_scored == rows.scored_lengths[batch.rows].sum()


def test_groups_change_no_hidden_state_and_save_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, model = encoded(20), tiny(3)
    together = make_batch(rows, range(20), pad_id=END, device="cpu")
    monkeypatch.setitem(module.GROUP_COST_TOKENS, "cpu", 2)
    apart = make_batch(rows, range(20), pad_id=END, device="cpu")
    assert len(together.groups) == 1 < len(apart.groups) and apart.num_positions < together.num_positions
    torch.testing.assert_close(
        scored_hidden_states(model, apart.groups), scored_hidden_states(model, together.groups), rtol=0, atol=1e-12
    )


def test_one_group_is_what_collate_makes() -> None:
    rows = encoded(6)
    batch = make_batch(rows, range(6), pad_id=END, device="cpu")
    ids_BT, labels_BT = collate([rows.row(i) for i in batch.rows], END)
    index_N, target_N = scored_positions(labels_BT)
    (group,) = batch.groups
    assert torch.equal(group.ids_BT, ids_BT) and torch.equal(group.index_N, index_N)
    assert torch.equal(batch.target_N, target_N)


def test_a_batch_with_nothing_scored_has_one_row_and_no_token() -> None:
    batch = make_batch(encoded(6), range(6), pad_id=END, device="cpu").unscored()
    assert batch.num_scored == 0 and len(batch.groups) == 1 and batch.groups[0].ids_BT.shape[0] == 1
    assert scored_hidden_states(tiny(3), batch.groups).shape == (0, 8)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="none to batch"):
        make_batch(encoded(3), [], pad_id=END, device="cpu")
