"""The cache of rows that come and go, against transformers' DynamicCache and plain concatenation."""

import torch
from transformers import DynamicCache

from kdrun.generation.slots import SPARE_COLUMNS, Slots


def states(num_rows: int, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values of 2 heads of width 3."""
    return torch.randn(num_rows, 2, num_columns, 3), torch.randn(num_rows, 2, num_columns, 3)


def test_it_holds_what_a_dynamic_cache_holds_past_its_spare_columns():
    mine, theirs = Slots(), DynamicCache()
    for num_columns in (5, *[1] * (SPARE_COLUMNS + 3), 4):
        for layer in (0, 1):
            new = states(3, num_columns)
            for ours, reference in zip(mine.update(*new, layer), theirs.update(*new, layer), strict=True):
                assert torch.equal(ours, reference)
        assert mine.get_seq_length() == theirs.get_seq_length()


def test_kept_and_joined_rows_end_at_the_last_column_and_go_on():
    first, second = Slots(), Slots()
    (a_keys, a_values), (b_keys, b_values), new = states(3, 4), states(2, 6), states(4, 1)
    first.update(a_keys, a_values, 0)
    second.update(b_keys, b_values, 0)
    first.keep([2, 0], num_columns=3)
    first.join(second)
    keys, values = first.update(*new, 0)
    assert keys.shape == (4, 2, 7, 3)
    for mine, a, b, last in ((keys, a_keys, b_keys, new[0]), (values, a_values, b_values, new[1])):
        assert torch.equal(mine[:, :, -1:], last)
        assert torch.equal(mine[:2, :, 3:6], a[[2, 0], :, 1:])
        assert (mine[:2, :, :3] == 0).all()  # and no garbage, which could be NaN
        assert torch.equal(mine[2:, :, :6], b)


def test_a_written_token_leaves_what_was_kept_elsewhere_alone():
    """Columns to spare are shared by nobody: the joined rows are copies."""
    first, second = Slots(), Slots()
    first.update(*states(1, 3), 0)
    other = states(1, 3)
    second.update(*other, 0)
    before = other[0].clone()
    first.join(second)
    first.update(*states(2, 1), 0)
    assert torch.equal(second.layers[0].keys, before)
