"""The statistics agree with the libraries where they compute the same, and cover at the stated rate where they do not."""

import math
from itertools import pairwise

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray
from scipy import stats as distributions
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from punnett.stats import Interval, difference, holm, rate, rate_interval, two_way_error, verdict, wilson

Table = NDArray[numpy.float64]
N_STUDENTS, N_CLUSTERS, N_ITEMS, N_REPLICATES = 3, 12, 2, 600
MARGIN = 0.1
TABLES = some.integers(0, 2**32 - 1).map(numpy.random.default_rng)


# --- the same as the libraries, where they compute the same


@given(some.integers(1, 500), some.data(), some.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_statsmodels(count: int, data: some.DataObject, level: float) -> None:
    right = data.draw(some.integers(0, count))
    expected = proportion_confint(right, count, alpha=1 - level, method="wilson")
    assert wilson(right / count, count, float(distributions.norm.ppf(0.5 + level / 2))) == pytest.approx(expected, abs=1e-8)


@given(TABLES, some.integers(2, 30))
def test_one_student_is_the_paired_t_test_over_clusters(random: numpy.random.Generator, n_clusters: int) -> None:
    first, second = random.uniform(0.3, 0.7, (1, n_clusters)), random.uniform(0.3, 0.7, (1, n_clusters))
    found, expected = difference(first, second), distributions.ttest_rel(first[0], second[0])
    low, high = expected.confidence_interval(0.95)
    assert found.estimate == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx((max(low, -1.0), min(high, 1.0)))
    assert found.narrow == pytest.approx(tuple(expected.confidence_interval(0.90)))
    assert found.p == pytest.approx(max(expected.pvalue, 1e-6), rel=1e-4)


@given(TABLES, some.integers(2, 30))
def test_one_cluster_is_the_paired_t_test_over_students(random: numpy.random.Generator, n_students: int) -> None:
    paired = random.normal(0.2, 0.1, (n_students, 1))
    found, expected = difference(paired, numpy.zeros_like(paired)), distributions.ttest_1samp(paired[:, 0], 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(numpy.clip(expected.confidence_interval(0.95), -1, 1)))
    assert found.p == pytest.approx(max(expected.pvalue, 1e-6), rel=1e-4)


@given(TABLES, some.integers(2, 8), some.integers(2, 15))
def test_without_a_residual_both_t_intervals_are_added_in_squares(random: numpy.random.Generator, n_students: int, n_clusters: int) -> None:
    students, clusters = random.normal(0, 0.02, (n_students, 1)), random.normal(0, 0.02, (1, n_clusters))
    found = difference(students + clusters, numpy.zeros((n_students, n_clusters)))
    parts = [distributions.ttest_1samp(means.ravel(), 0.0).confidence_interval(0.95) for means in (students, clusters)]
    assert (found.high - found.low) / 2 == pytest.approx(math.hypot(*((high - low) / 2 for low, high in parts)))


@settings(max_examples=8)  # statsmodels collects the garbage at each call, which is slow
@given(some.lists(some.sampled_from([0.0, 1e-6, 0.01, 0.04, 0.05, 0.3, 1.0]), max_size=8))
def test_holm_steps_down_from_the_smallest(p_values: list[float]) -> None:
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    expected, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        expected[place] = so_far
    assert holm(p_values) == pytest.approx(expected)


def test_holm_is_statsmodels() -> None:
    p_values = [0.01, 0.04, 0.03, 0.9, 0.01]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


# --- what must hold for any table


@given(TABLES, some.integers(1, 6), some.integers(1, 12), some.sampled_from([2, 3, 100]))
def test_rates_lie_in_their_interval_and_that_between_0_and_1(random: numpy.random.Generator, n_students: int, n_clusters: int, values: int) -> None:
    found = rate(random.integers(0, values, (n_students, n_clusters)) / (values - 1))
    assert 0 <= found.low <= found.narrow[0] <= found.estimate <= found.narrow[1] <= found.high <= 1
    assert found.low < found.high
    assert found.p is None


@given(TABLES, some.integers(1, 6), some.integers(2, 12), some.sampled_from([2, 3, 100]))
def test_turning_a_difference_round_turns_everything_round(random: numpy.random.Generator, n_students: int, n_clusters: int, values: int) -> None:
    first, second = (random.integers(0, values, (n_students, n_clusters)) / (values - 1) for _ in range(2))
    forth, back = difference(first, second), difference(second, first)
    assert (back.estimate, back.low, back.high, back.p) == pytest.approx((-forth.estimate, -forth.high, -forth.low, forth.p), abs=1e-9)


@given(TABLES, some.integers(1, 6), some.integers(2, 12), some.sampled_from([2, 3, 100]))
def test_the_order_of_students_and_of_clusters_is_nothing(random: numpy.random.Generator, n_students: int, n_clusters: int, values: int) -> None:
    first, second = (random.integers(0, values, (n_students, n_clusters)) / (values - 1) for _ in range(2))
    places = numpy.ix_(random.permutation(n_students), random.permutation(n_clusters))
    found, shuffled = difference(first, second), difference(first[places], second[places])
    assert (shuffled.estimate, shuffled.low, shuffled.high, shuffled.p) == pytest.approx((found.estimate, found.low, found.high, found.p), abs=1e-6)


@given(TABLES, some.integers(1, 6), some.integers(2, 12), some.sampled_from([3, 5, 100]))
def test_p_is_below_a_level_exactly_where_the_interval_leaves_0_out(
    random: numpy.random.Generator, n_students: int, n_clusters: int, values: int
) -> None:
    paired = random.integers(-1, values, (n_students, n_clusters)) / values
    if two_way_error(paired).standard_error > 1e-6:
        found = difference(paired, numpy.zeros_like(paired))
        assert found.p is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        assert (found.p < 0.10) == (found.narrow[0] > 0 or found.narrow[1] < 0)


CONSTANT = [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.5, 0.25), (0.6, 0.6), (0.75, 0.0)]


@pytest.mark.parametrize("n_clusters", [1, 2, 4, 12])
@pytest.mark.parametrize(("first", "second"), CONSTANT)
def test_constant_tables_get_an_interval_with_width(first: float, second: float, n_clusters: int) -> None:
    found = difference(numpy.full((3, n_clusters), first), numpy.full((3, n_clusters), second))
    assert found.estimate == pytest.approx(first - second)
    assert -1 <= found.low <= found.narrow[0] <= found.estimate <= found.narrow[1] <= found.high <= 1
    assert found.high - found.low > 0.1
    assert found.p is not None
    assert found.p > 0


def test_more_clusters_narrow_a_constant_difference_and_more_students_do_not() -> None:
    def width(n_students: int, n_clusters: int) -> float:
        found = difference(numpy.ones((n_students, n_clusters)), numpy.zeros((n_students, n_clusters)))
        return found.high - found.low

    widths = [width(3, n_clusters) for n_clusters in (2, 4, 8, 16)]
    assert all(small > large for small, large in pairwise(widths))
    assert width(3, 8) == pytest.approx(width(30, 8))


@pytest.mark.parametrize("n_clusters", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("estimate", [1.0, -1.0])
def test_p_of_a_constant_difference_agrees_with_its_interval(estimate: float, n_clusters: int) -> None:
    ones, zeros = numpy.ones((3, n_clusters)), numpy.zeros((3, n_clusters))
    found = difference(ones, zeros) if estimate > 0 else difference(zeros, ones)
    assert found.p is not None
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_no_difference_has_p_1() -> None:
    same = numpy.full((3, 4), 0.5)
    assert difference(same, same).p == 1.0


def test_methods_say_what_they_can_not_see() -> None:
    table = numpy.array([[0.1, 0.5, 0.4]])
    assert "one student: says nothing about other seeds" in difference(table, table[:, ::-1]).method
    assert "one cluster" in difference(table.T, table.T[::-1]).method
    assert "two-way over students and clusters" in rate(numpy.array([[0.1, 0.5], [0.2, 0.9]])).method
    assert "Newcombe" in difference(numpy.ones((2, 2)), numpy.zeros((2, 2))).method


# --- the stated rates, on simulated studies


def crossed(random: numpy.random.Generator, n_students: int, n_clusters: int, spread: tuple[float, float, float]) -> Table:
    """Values of the crossed random-effects model, whose spreads are those of students, clusters and the rest."""
    student, cluster, rest = spread
    effects = random.normal(0, student, (n_students, 1)) + random.normal(0, cluster, (1, n_clusters))
    return effects + random.normal(0, rest, (n_students, n_clusters))


@pytest.mark.parametrize("shape", [(3, 12), (5, 8), (2, 30)])
@pytest.mark.parametrize("spread", [(0.1, 0.2, 0.1), (0.2, 0.2, 0.2), (0.0, 0.3, 0.1)])
def test_the_two_way_error_is_unbiased(shape: tuple[int, int], spread: tuple[float, float, float]) -> None:
    random, (n_students, n_clusters) = numpy.random.default_rng(7), shape
    student, cluster, rest = spread
    truth = student**2 / n_students + cluster**2 / n_clusters + rest**2 / (n_students * n_clusters)
    variances = [two_way_error(crossed(random, *shape, spread)).standard_error ** 2 for _ in range(2000)]
    doubt = numpy.std(variances) / math.sqrt(len(variances))
    assert abs(numpy.mean(variances) - truth) < 4 * doubt


def test_the_two_way_error_of_what_is_not_there_is_no_less_than_the_truth() -> None:
    """Where clusters do not differ, a negative part is cut off at 0: the error may be too large, never too small."""
    random = numpy.random.default_rng(8)
    variances = [two_way_error(crossed(random, 3, 12, (0.0, 0.0, 0.2))).standard_error ** 2 for _ in range(2000)]
    assert 0.9 < numpy.mean(variances) / (0.2**2 / 36) < 2.0


def simulated(random: numpy.random.Generator, first: float, second: float) -> tuple[Table, Table]:
    """Two arms of a study with these true rates: answers are right or wrong, chances differ by student, by cluster and by arm.

    Chances differ less near 0 and 1, where there is less room, and evenly to both sides, so that the true rates are exact.
    """

    def answers(middle: float) -> Table:
        own = random.uniform(-0.06, 0.06, (N_STUDENTS, 1)) + random.uniform(-0.08, 0.08, (1, N_CLUSTERS))
        chance = middle + 4 * middle * (1 - middle) * (shared + own)
        assert chance.min() >= 0
        assert chance.max() <= 1
        return random.binomial(N_ITEMS, chance) / N_ITEMS

    # students of one seed and items of one cluster are alike in both arms
    shared = random.uniform(-0.03, 0.03, (N_STUDENTS, 1)) + random.uniform(-0.05, 0.05, (1, N_CLUSTERS))
    return answers(first), answers(second)


def replicates(first: float, second: float, seed: int) -> list[Interval]:
    random = numpy.random.default_rng(seed)
    return [difference(*simulated(random, first, second)) for _ in range(N_REPLICATES)]


@pytest.fixture(scope="module")
def nulls() -> list[Interval]:
    return replicates(0.5, 0.5, seed=11)


@pytest.fixture(scope="module")
def planted() -> list[Interval]:
    """A trait of 0.55 that an intervention takes out, down to 0.05."""
    return replicates(0.55, 0.05, seed=12)


def share(intervals: list[Interval], found: str) -> float:
    return sum(verdict(interval, interval.p or 0.0, MARGIN) == found for interval in intervals) / len(intervals)


def test_intervals_cover_the_truth_at_the_stated_rate(nulls: list[Interval], planted: list[Interval]) -> None:
    for truth, intervals in ((0.0, nulls), (0.5, planted)):
        assert sum(i.low <= truth <= i.high for i in intervals) / N_REPLICATES >= 0.93
        assert 0.87 <= sum(i.narrow[0] <= truth <= i.narrow[1] for i in intervals) / N_REPLICATES <= 0.97


@pytest.mark.parametrize("rate_of_both", [0.05, 0.2, 0.5])
def test_a_null_is_seldom_called_different(rate_of_both: float) -> None:
    assert share(replicates(rate_of_both, rate_of_both, seed=14), "different") <= 0.07


def test_a_planted_effect_is_found(planted: list[Interval]) -> None:
    assert share(planted, "different") >= 0.90
    assert share(planted, "equivalent") == 0.0
    assert numpy.mean([i.estimate for i in planted]) == pytest.approx(0.5, abs=0.02)


def test_an_effect_between_middling_rates_is_found_less_often_but_mostly() -> None:
    """Three students and 24 items: answers vary most here, and t quantiles of two degrees of freedom are wide."""
    assert share(replicates(0.75, 0.25, seed=15), "different") >= 0.80


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.75])
def test_rates_are_covered_at_the_stated_rate(truth: float) -> None:
    random = numpy.random.default_rng(13)
    bounds = [rate_interval(simulated(random, truth, truth)[0]) for _ in range(N_REPLICATES)]
    assert sum(low <= truth <= high for low, high in bounds) / N_REPLICATES >= 0.93


# --- verdicts


def interval(low: float, high: float) -> Interval:
    """An interval whose 90 % bounds are given."""
    return Interval((low + high) / 2, low - 0.01, high + 0.01, (low, high), None, "")


@pytest.mark.parametrize(
    ("narrow", "p", "expected"),
    [
        ((-0.05, 0.05), 0.9, "equivalent"),
        ((0.02, 0.08), 0.001, "equivalent"),
        ((-0.05, 0.15), 0.3, "undecided"),
        ((0.02, 0.20), 0.04, "different"),
        ((0.02, 0.20), 0.06, "undecided"),
        ((0.02, 0.20), 0.05, "undecided"),
        ((-0.60, -0.30), 0.001, "different"),
        ((-0.10, 0.05), 0.5, "undecided"),
        ((-0.05, 0.10), 0.5, "undecided"),
        ((-0.50, 0.50), 1.0, "undecided"),
    ],
)
def test_verdicts(narrow: tuple[float, float], p: float, expected: str) -> None:
    assert verdict(interval(*narrow), p, MARGIN) == expected


@given(some.floats(-1, 1), some.floats(0, 1), some.floats(0.05, 1))
def test_a_large_p_alone_never_makes_two_arms_alike(middle: float, width: float, p: float) -> None:
    told = verdict(interval(middle - width, middle + width), p, MARGIN)
    assert (told == "equivalent") == (abs(middle) + width < MARGIN) or math.isclose(abs(middle) + width, MARGIN)
    assert told != "different"
