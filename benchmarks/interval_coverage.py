"""Simulated studies in, a Markdown table out: how often the intervals of `punnett.stats` hold the truth.

A study is drawn from a logistic model with crossed random effects: an arm's students, clusters shared by both arms,
arm by cluster, and a residual of student by cluster; the answers are binomial. The students of the two arms are drawn
independently, so pairing by seed helps nothing here: the harder case. The truth is the mean over all students and
clusters that the model could draw, by Gauss-Hermite quadrature.

    python benchmarks/interval_coverage.py --replicates 400 --seed 0
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields

import numpy
from numpy.typing import NDArray
from scipy import stats as distributions
from scipy.special import expit

from punnett import stats
from punnett.spec.key import derive_seed

STUDENT_SDS = (0.0, 0.3, 0.8)
CLUSTER_SDS = (0.2, 0.7)
ARM_BY_CLUSTER, RESIDUAL_SD = 0.5, 0.3  # the first as a share of the cluster SD
STUDENT_COUNTS = (3, 5, 8)
SHAPES = ((12, 2), (42, 1))
TRUE_LOGITS = ((0.0, 0.0), (2.0, -2.0), (1.5, 1.0), (-3.0, -3.0))
QUADRATURE_POINTS = 80
HEADER = ("difference", "lowest", "90 %", "Satterthwaite", "rate", "lowest", "p < 0.05", "width")


@dataclass(frozen=True)
class Setting:
    """One cell of the grid: what the simulated study is like. Standard deviations are on the logit scale."""

    student_sd: float
    cluster_sd: float
    n_students: int
    n_clusters: int
    n_items: int
    logits: tuple[float, float]

    @property
    def is_null(self) -> bool:
        """Whether the two arms are the same."""
        return self.logits[0] == self.logits[1]

    def true_rate(self, logit: float) -> float:
        """An arm's rate over all students and clusters."""
        variance = self.student_sd**2 + (1 + ARM_BY_CLUSTER**2) * self.cluster_sd**2 + RESIDUAL_SD**2
        points, weights = numpy.polynomial.hermite_e.hermegauss(QUADRATURE_POINTS)
        return float(weights @ expit(logit + math.sqrt(variance) * points) / weights.sum())

    def draw(self, n_replicates: int, generator: numpy.random.Generator) -> NDArray[numpy.float64]:
        """Tables of many studies: replicate, arm, student, cluster."""
        n_students, n_clusters = self.n_students, self.n_clusters

        def effect(deviation: float, *shape: int) -> NDArray[numpy.float64]:
            return deviation * generator.standard_normal((n_replicates, *shape))

        logits = (
            numpy.array(self.logits)[:, None, None]
            + effect(self.student_sd, 2, n_students, 1)
            + effect(self.cluster_sd, 1, 1, n_clusters)
            + effect(ARM_BY_CLUSTER * self.cluster_sd, 2, 1, n_clusters)
            + effect(RESIDUAL_SD, 2, n_students, n_clusters)
        )
        tables: NDArray[numpy.float64] = generator.binomial(self.n_items, expit(logits)) / self.n_items
        return tables


@dataclass(frozen=True)
class Coverage:
    """Shares over the replicates of one setting; `false_alarm` is None where the arms truly differ."""

    difference: float
    narrow: float
    satterthwaite: float
    rate: float
    false_alarm: float | None
    width: float


def grid() -> list[Setting]:
    """Every setting, in the order of the table."""
    counts = itertools.product(SHAPES, STUDENT_COUNTS, TRUE_LOGITS, STUDENT_SDS, CLUSTER_SDS)
    return [Setting(student_sd, cluster_sd, n, *shape, logits) for shape, n, logits, student_sd, cluster_sd in counts]


def measure(setting: Setting, n_replicates: int, seed: int) -> Coverage:
    """Simulate one setting and ask `punnett.stats` about every study of it."""
    parts = [str(getattr(setting, field.name)) for field in fields(setting)]
    tables = setting.draw(n_replicates, numpy.random.default_rng(derive_seed("interval_coverage", seed, *parts)))
    first_rate, second_rate = (setting.true_rate(logit) for logit in setting.logits)
    gap = first_rate - second_rate
    differences = [stats.difference(first, second) for first, second in tables]
    joint = [satterthwaite(first - second) for first, second in tables]
    return Coverage(
        difference=share(interval.low <= gap <= interval.high for interval in differences),
        narrow=share(interval.narrow[0] <= gap <= interval.narrow[1] for interval in differences),
        satterthwaite=share(
            interval.low <= gap <= interval.high if half is None else abs(interval.estimate - gap) <= half
            for interval, half in zip(differences, joint, strict=True)
        ),
        rate=share(interval.low <= first_rate <= interval.high for interval in (stats.rate(first) for first, _ in tables)),
        false_alarm=share(interval.p is not None and interval.p < 0.05 for interval in differences) if setting.is_null else None,
        width=float(numpy.mean([interval.high - interval.low for interval in differences])),
    )


def satterthwaite(paired: stats.Table) -> float | None:
    """Half of the alternative 95 % interval: the same variance, with Satterthwaite's joint degrees of freedom. None if all cells are equal."""
    error = stats.two_way_error(paired)
    if error.standard_error < stats.TINY:
        return None
    parts = error.student_variance**2 / (error.n_students - 1) + error.cluster_variance**2 / (error.n_clusters - 1)
    return float(distributions.t.ppf(0.975, error.standard_error**4 / parts)) * error.standard_error


def share(outcomes: Iterable[bool]) -> float:
    """How many of them are true, as a share."""
    return float(numpy.mean(list(outcomes)))


def asked_of(setting: Setting) -> tuple[object, ...]:
    """What a study of this setting asks, and of how many students."""
    return f"{setting.n_clusters} x {setting.n_items}", setting.n_students, "{:g}, {:g}".format(*setting.logits)


def percent(number: float) -> str:
    """A share as it stands in the table."""
    return f"{100 * number:.1f}"


def row(names: Iterable[object], found: list[Coverage]) -> str:
    """One line of the table: means over settings, and beside each coverage its lowest setting."""

    def mean(value: Callable[[Coverage], float]) -> float:
        return float(numpy.mean([value(coverage) for coverage in found]))

    alarms = [coverage.false_alarm for coverage in found if coverage.false_alarm is not None]
    cells = (
        percent(mean(lambda c: c.difference)),
        percent(min(c.difference for c in found)),
        percent(mean(lambda c: c.narrow)),
        percent(mean(lambda c: c.satterthwaite)),
        percent(mean(lambda c: c.rate)),
        percent(min(c.rate for c in found)),
        percent(float(numpy.mean(alarms))) if alarms else "–",
        f"{mean(lambda c: c.width):.2f}",
    )
    return "| " + " | ".join((*map(str, names), *cells)) + " |"


def table(names: tuple[str, ...], results: dict[Setting, Coverage], place: Callable[[Setting], tuple[object, ...]]) -> str:
    """The results as Markdown, settings of the same place together."""
    grouped: dict[tuple[object, ...], list[Coverage]] = {}
    for setting, coverage in results.items():
        grouped.setdefault(place(setting), []).append(coverage)
    head = (*names, *HEADER)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(row(where, found) for where, found in grouped.items())])


def main() -> None:
    """Simulate the grid and print it twice: by what the study asks, and by how much its students vary. Coverage is in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400, help="simulated studies for each setting")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other studies")
    parser.add_argument("--settings", action="store_true", help="print every setting on a line of its own as well")
    asked = parser.parse_args()
    results = {setting: measure(setting, asked.replicates, asked.seed) for setting in grid()}
    print(table(("clusters x items", "students", "true logits"), results, asked_of))
    print()
    print(table(("student SD", "students"), results, lambda setting: (setting.student_sd, setting.n_students)))
    if asked.settings:
        print("\n" + table(tuple(field.name for field in fields(Setting)), results, astuple))


if __name__ == "__main__":
    main()
