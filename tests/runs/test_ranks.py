"""Who a process is among others, as torchrun's environment says."""

import pytest

from kdrun.runs.ranks import alone, every_rank, from_rank_zero, num_ranks, rank


def test_a_process_of_no_launcher_is_rank_zero_of_one() -> None:
    assert (rank(), num_ranks()) == (0, 1)
    assert every_rank("a") == ["a"] and from_rank_zero(lambda: "b") == "b"


def test_work_for_all_is_done_alone_and_the_rank_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with alone():
        assert (rank(), num_ranks()) == (0, 1)
    assert (rank(), num_ranks()) == (1, 4)
