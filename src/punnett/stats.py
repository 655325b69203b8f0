"""Arrays in, numbers out: intervals over students and item clusters, equivalence, multiplicity. See docs/statistics.md.

A table of values is students by clusters: entry (s, c) is the mean over the items of cluster c that student s answered.
Both directions are random: other seeds would have given other students, other templates other items.
"""

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats as distributions

Table = NDArray[numpy.float64]
TINY, SMALLEST_P = 1e-9, 1e-6


@dataclass(frozen=True)
class Interval:
    """An estimate with its doubt. `p` is two-sided against 0 and None for a rate; `narrow` bounds the 90 % interval."""

    estimate: float
    low: float
    high: float
    narrow: tuple[float, float]
    p: float | None
    method: str


@dataclass(frozen=True)
class MeanError:
    """How far a two-way mean may be off: a part of the variance for each direction, each with its own degrees of freedom."""

    student_variance: float
    cluster_variance: float
    n_students: int
    n_clusters: int

    @property
    def standard_error(self) -> float:
        """Square root of the summed variances."""
        return math.sqrt(self.student_variance + self.cluster_variance)

    def half_width(self, level: float) -> float:
        """Half of the interval: each part stretched by its own t quantile, then added in squares (Banerjee 1960)."""
        student, cluster = (float(distributions.t.ppf(0.5 + level / 2, n - 1)) if n > 1 else 0.0 for n in (self.n_students, self.n_clusters))
        return math.sqrt(student**2 * self.student_variance + cluster**2 * self.cluster_variance)

    @property
    def method(self) -> str:
        """In words, for the column beside every number."""
        if self.n_students == 1:
            return "over clusters only (one student: says nothing about other seeds)"
        if self.n_clusters == 1:
            return "over students only (one cluster)"
        return "two-way over students and clusters"


def two_way_error(table: Table) -> MeanError:
    """Error of the mean of a students-by-clusters table, both ways random.

    Analysis of variance of the crossed random-effects model with one value per cell. The mean squares of students and
    of clusters both hold the residual; it is counted once, with the students, where the degrees of freedom are few.
    In simulated studies with 3 to 8 students this covers at about 95 to 96 %, a little wide at 3, where Satterthwaite's
    joint degrees of freedom fall to about 91 % in places (`benchmarks/interval_coverage.py`).
    """
    n_students, n_clusters = table.shape
    grand = table.mean()
    by_student, by_cluster = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    ms_students = n_clusters * float(((by_student - grand) ** 2).sum()) / max(n_students - 1, 1)
    ms_clusters = n_students * float(((by_cluster - grand) ** 2).sum()) / max(n_clusters - 1, 1)
    ms_residual = 0.0
    if n_students > 1 and n_clusters > 1:
        ms_residual = float(((table - by_student - by_cluster + grand) ** 2).sum()) / ((n_students - 1) * (n_clusters - 1))
    beyond_residual = max(ms_clusters - ms_residual, 0.0)
    return MeanError(ms_students / table.size, beyond_residual / table.size, n_students, n_clusters)


def wilson(rate: float, n_effective: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval (1927) for a rate from `n_effective` independent answers."""
    centre = (rate + quantile**2 / (2 * n_effective)) / (1 + quantile**2 / n_effective)
    half = quantile / (1 + quantile**2 / n_effective) * math.sqrt(rate * (1 - rate) / n_effective + quantile**2 / (4 * n_effective**2))
    low, high = centre - half, centre + half
    return (low if low > TINY else 0.0), (high if high < 1 - TINY else 1.0)


def rate_interval(table: Table, level: float = 0.95) -> tuple[float, float]:
    """Interval of a rate: Wilson's, with the effective number of answers that the two-way error implies (Korn and Graubard 1998).

    Where every cell is the same the error is estimated as 0, which nobody should believe: then each cluster counts as
    one answer, and further students as none.
    """
    rate, n_clusters = float(table.mean()), table.shape[1]
    error = two_way_error(table)
    if error.standard_error < TINY or not 0 < rate < 1:
        return wilson(min(max(rate, 0.0), 1.0), n_clusters, float(distributions.norm.ppf(0.5 + level / 2)))
    n_effective = rate * (1 - rate) / error.standard_error**2
    return wilson(rate, n_effective, error.half_width(level) / error.standard_error)


def rate(table: Table) -> Interval:
    """A rate between 0 and 1 with its 95 % interval."""
    low, high = rate_interval(table)
    method = f"Wilson with effective n, {two_way_error(table).method}"
    return Interval(float(table.mean()), low, high, rate_interval(table, 0.90), None, method)


def difference(first: Table, second: Table) -> Interval:
    """First minus second, paired by student (row) and cluster (column), with its 95 % interval.

    Where every paired difference is the same (0 against 1 everywhere, say) the t interval would have no width;
    then Newcombe's hybrid of the two rates' Wilson intervals (1998, method 10) stands in.
    """
    paired = first - second
    estimate, error = float(paired.mean()), two_way_error(paired)
    if error.standard_error < TINY:
        return _constant_difference(estimate, first, second)
    half, narrow_half = error.half_width(0.95), error.half_width(0.90)
    return Interval(
        estimate,
        max(-1.0, estimate - half),
        min(1.0, estimate + half),
        (estimate - narrow_half, estimate + narrow_half),
        _p_value(estimate, error),
        f"paired t, {error.method}",
    )


def _p_value(estimate: float, error: MeanError) -> float:
    """The p at which the interval just touches 0: 1 minus its level."""
    from scipy.optimize import brentq

    def gap(p: float) -> float:
        return error.half_width(1 - p) - abs(estimate)

    if gap(SMALLEST_P) <= 0:
        return SMALLEST_P
    return 1.0 if gap(1.0) >= 0 else float(brentq(gap, SMALLEST_P, 1.0))


def _constant_difference(estimate: float, first: Table, second: Table) -> Interval:
    wide, narrow = _newcombe(first, second, 0.95), _newcombe(first, second, 0.90)
    p = 1.0 if estimate == 0 else _p_of_constant(first, second)
    method = f"Newcombe hybrid of Wilson intervals over clusters (all {first.size} paired differences are equal)"
    return Interval(estimate, *wide, narrow, p, method)


def _newcombe(first: Table, second: Table, level: float) -> tuple[float, float]:
    a, b = float(first.mean()), float(second.mean())
    (a_low, a_high), (b_low, b_high) = rate_interval(first, level), rate_interval(second, level)
    low = a - b - math.sqrt((a - a_low) ** 2 + (b_high - b) ** 2)
    high = a - b + math.sqrt((a_high - a) ** 2 + (b - b_low) ** 2)
    return max(-1.0, low), min(1.0, high)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the order given."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def verdict(interval: Interval, p_adjusted: float, margin: float, alpha: float = 0.05) -> str:
    """`equivalent` if the 90 % interval lies within the margin (two one-sided tests, Schuirmann 1987), else `different`
    if the adjusted p is below alpha, else `undecided`. A large p alone never makes two arms alike."""
    if -margin < interval.narrow[0] and interval.narrow[1] < margin:
        return "equivalent"
    return "different" if p_adjusted < alpha else "undecided"


def _p_of_constant(first: Table, second: Table) -> float:
    """The p at which Newcombe's interval just touches 0: there the product of its bounds changes sign."""
    from scipy.optimize import brentq

    def product(p: float) -> float:
        low, high = _newcombe(first, second, 1 - p)
        return low * high

    return SMALLEST_P if product(SMALLEST_P) > 0 else float(brentq(product, SMALLEST_P, 1 - 1e-12))
