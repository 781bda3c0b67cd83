"""Student's intervals against scipy."""

import math

import pytest
from scipy import stats

from kdrun.studies.intervals import mean_over_seeds, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 31, 100])
def test_the_quantile_is_scipys(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-7)


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = [0.3, 0.5, 0.1]
    mean = mean_over_seeds(values)
    expected = stats.t.interval(0.95, 2, loc=0.3, scale=stats.sem(values))
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.3, *expected))
    assert mean.sign == 0
    assert mean_over_seeds([0.30, 0.31, 0.29]).sign == 1
    assert mean_over_seeds([-0.30, -0.31, -0.29]).sign == -1


def test_one_seed_shows_nothing() -> None:
    mean = mean_over_seeds([5.0])
    assert (mean.value, mean.low, mean.high, mean.sign) == (5.0, -math.inf, math.inf, 0)
    assert str(mean_over_seeds([0.0123, 0.0125])) == "+0.0124 [+0.0111, +0.0137]"
