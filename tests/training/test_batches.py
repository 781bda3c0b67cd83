"""Which rows a step sees."""

import numpy as np
import pytest

from kdrun.training.batches import RowOrder, micro_batches, steps_per_epoch, total_steps


def test_every_row_comes_once_an_epoch_and_none_is_dropped() -> None:
    order = RowOrder(1003, batch_size=8, seed=3)
    steps = steps_per_epoch(1003, 8)
    assert steps == 126
    for epoch in range(2):
        rows = np.concatenate([order.rows(epoch * steps + i) for i in range(steps)])
        assert sorted(rows) == list(range(1003))


def test_the_order_is_a_function_of_seed_and_step() -> None:
    a, b = RowOrder(1003, batch_size=8, seed=3), RowOrder(1003, batch_size=8, seed=3)
    steps = [0, 200, 5, 130, 0]  # b is asked in another order: no state but the step
    assert all((a.rows(i) == b.rows(i)).all() for i in sorted(steps) for _ in [b.rows(steps[-1])])
    other = RowOrder(1003, batch_size=8, seed=4)
    assert any((a.rows(i) != other.rows(i)).any() for i in range(5))
    assert (a.rows(0) != a.rows(126)).any(), "epochs differ"


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "max_steps", "steps"),
    [(100, 32, 1, None, 4), (96, 32, 2, None, 6), (100, 32, 0.5, None, 2), (100, 32, 20, 7, 7), (5, 32, 1, None, 1)],
)
def test_a_run_has_as_many_steps_as_its_epochs_need(
    rows: int, batch: int, epochs: float, max_steps: int, steps: int
) -> None:
    assert total_steps(rows, batch, epochs=epochs, max_steps=max_steps) == steps


def test_micro_batches_cover_the_rows_once() -> None:
    rows = np.arange(10)
    assert [list(piece) for piece in micro_batches(rows, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(piece) for piece in micro_batches(rows, None)] == [10]
