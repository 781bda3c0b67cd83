"""Intervals and p values, against scipy, against Student's t, and against the truth of simulations."""

import numpy as np
import pytest
from scipy import stats

from kdrun.analysis.bootstrap import paired_bootstrap


def of(ours: np.ndarray, theirs: np.ndarray, *, same_seeds: bool = True, **options):
    """One measure: seeds x examples."""
    return paired_bootstrap(ours[..., None], theirs[..., None], same_seeds=same_seeds, **options)[0]


def test_one_seed_gives_the_interval_of_an_independent_bootstrap_and_of_students_t() -> None:
    random = np.random.default_rng(1)
    values, reference = random.normal(0.3, 1, (1, 150)), random.normal(0, 1, (1, 150))
    found, difference = of(values, reference), (values - reference)[0]
    other = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=10_000, random_state=2)
    t = stats.ttest_1samp(difference, 0)
    assert found.difference == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx(list(other.confidence_interval), abs=0.02)
    assert [found.low, found.high] == pytest.approx(list(t.confidence_interval()), abs=0.02)
    assert found.p == pytest.approx(t.pvalue, abs=0.01)


def test_two_examples_worked_by_hand() -> None:
    """Differences 0 and 2: the resampled mean is 0, 1, 2 with chances 1/4, 1/2, 1/4; zero or less in a quarter."""
    found = of(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    assert (found.difference, found.low, found.high, found.num_examples) == (1.0, 0.0, 2.0, 2)
    assert found.p == pytest.approx(0.5, abs=0.02)


def test_equal_runs_do_not_differ_and_a_plain_difference_has_the_least_p() -> None:
    same = np.random.default_rng(0).normal(size=(3, 40))
    nothing = of(same, same)
    assert (nothing.difference, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
    assert of(same[:1] + 1, same[:1]).p == pytest.approx(1 / 10_001)


def test_with_examples_that_all_agree_the_interval_is_students_t_over_seeds() -> None:
    """Seeds that differ by 1, 2, 6 in every example: only the noise of training is there."""
    seeds = np.array([1.0, 2.0, 6.0])
    found = of(np.repeat(seeds[:, None], 50, 1), np.zeros((3, 50)))
    low, high = stats.ttest_1samp(seeds, 0).confidence_interval()
    assert [found.low, found.high] == pytest.approx([low, high], rel=0.1)
    assert found.p == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue, abs=0.02)


def test_equal_seeds_are_paired_and_others_are_not() -> None:
    """A seed that lifts both sides alike is no noise of the difference; where the seeds differ it is."""
    lift = np.repeat(np.array([[0.0], [5.0], [10.0]]), 30, 1)
    paired, apart = of(lift + 1, lift), of(lift + 1, lift, same_seeds=False)
    assert paired.high - paired.low < 1e-9
    assert apart.high - apart.low > 10


def test_an_example_without_a_value_is_left_out() -> None:
    ours, theirs = np.array([[1.0, np.nan, 3.0, 8.0]]), np.array([[0.0, 1.0, np.nan, 6.0]])
    found = of(ours, theirs)
    assert (found.difference, found.num_examples) == (1.5, 2)


def test_measures_are_judged_each_for_itself() -> None:
    values = np.random.default_rng(0).normal(size=(1, 60, 3)) + np.array([0, 1, -1])
    together = paired_bootstrap(values, np.zeros((1, 60, 3)), same_seeds=True)
    alone = paired_bootstrap(values[..., 1:2], np.zeros((1, 60, 1)), same_seeds=True)[0]
    assert together[1].low == pytest.approx(alone.low)
    assert together[2].high < 0 < together[1].low


def simulated(random: np.random.Generator, seeds: int, *, training: float, examples: int = 60) -> tuple:
    """Both sides share the difficulty of examples; every run has luck of its own. The true difference is zero."""
    difficulty = random.normal(0, 2, examples)
    sides = [difficulty + random.normal(0, training, (seeds, 1)) + random.exponential(1, (seeds, examples))
             for _ in range(2)]  # fmt: skip
    return sides[0], sides[1]


@pytest.mark.parametrize(("seeds", "training"), [(1, 0.0), (3, 0.0), (2, 0.5), (3, 0.5), (5, 0.5)])
def test_about_95_percent_of_intervals_hold_the_truth(seeds: int, training: float) -> None:
    """300 simulations: a binomial of 95 % stays within 0.91 .. 0.98; noise counted twice makes some wider."""
    random = np.random.default_rng(7)
    found = [of(*simulated(random, seeds, training=training), resamples=2000) for _ in range(300)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.91 <= covered <= 1.0, covered
    assert seeds > 1 or covered <= 0.98
    # Under the null a p value is below x in at most a share x of cases.
    p = np.array([one.p for one in found])
    assert np.mean(p < 0.05) <= 0.09
    assert np.mean(p < 0.5) <= 0.57


def test_resampling_two_seeds_one_by_one_would_hold_the_truth_too_rarely() -> None:
    """Why the noise of training is drawn from Student's t instead."""
    random, held = np.random.default_rng(7), 0
    for _ in range(300):
        ours, theirs = simulated(random, 2, training=0.5)
        difference = ours - theirs
        rows, columns = random.integers(0, 2, (1000, 2)), random.integers(0, 60, (1000, 60))
        means = difference[rows[:, :, None], columns[:, None, :]].mean((1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        held += low <= 0 <= high
    assert held / 300 < 0.8
