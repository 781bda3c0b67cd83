"""Alternation, quartiles and ratios, with a clock of the test's own."""

import pytest

from kdrun.bench.timing import Timing, alternate, orders, ratio, seconds_of, spread


def test_every_contestant_is_called_once_a_round_in_a_rotated_order() -> None:
    assert list(orders(["a", "b", "c"], 4)) == [["a", "b", "c"], ["a", "c", "b"], ["c", "a", "b"], ["c", "b", "a"]]


def test_alternate_calls_in_that_order_and_keeps_one_reading_a_round() -> None:
    called: list[str] = []
    works = {name: (lambda name=name: called.append(name)) for name in "abc"}
    readings = iter(range(100))

    def measure(work) -> float:
        work()
        return float(next(readings))

    seconds = alternate(works, 2, measure=measure)
    assert called == ["a", "b", "c", "a", "c", "b"]
    assert seconds == {"a": (0.0, 3.0), "b": (1.0, 5.0), "c": (2.0, 4.0)}


def test_the_device_is_waited_for_before_each_reading_of_the_clock() -> None:
    happened: list[str] = []
    times = iter([10.0, 12.5])

    def clock() -> float:
        happened.append("clock")
        return next(times)

    seconds = seconds_of(lambda: happened.append("work"), wait=lambda: happened.append("wait"), clock=clock)
    assert seconds == 2.5
    assert happened == ["wait", "clock", "work", "wait", "clock"]


def test_quartiles_are_those_of_numpy() -> None:
    np = pytest.importorskip("numpy")
    values = [5.0, 1.0, 4.0, 9.0, 2.0, 7.0]
    found = spread(values)
    assert [found.low, found.median, found.high] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]).tolist())


def test_a_ratio_is_taken_within_each_round() -> None:
    # the machine was ten times slower in the second round: the ratio does not see it
    assert ratio(Timing(0, (2.0, 20.0)), Timing(0, (1.0, 10.0))).median == 2.0
    assert ratio(Timing(0, (2.0, 20.0)), Timing(0, (1.0, 10.0))).high == 2.0
