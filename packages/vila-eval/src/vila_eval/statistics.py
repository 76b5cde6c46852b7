"""Means with standard errors and 95 % confidence intervals, and paired comparison of two runs.

n samples, C clusters (such as the questions about one picture), G groups.

Sources: Miller 2024, "Adding Error Bars to Evals" (clusters); Wilson 1927 (intervals of proportions); Bell and
McCaffrey 2002 (the jackknife over clusters, CR3, with t quantiles); Korn and Graubard 1998 (proportions in clusters).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vila_core.errors import ConfigError
from vila_core.intervals import wilson_interval

CONFIDENCE = 0.95
SMALL_SAMPLE = 25
"""Differing samples (or clusters) up to which two runs are compared with the exact sign test."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` samples, in the unit of the samples.

    Attributes:
        mean: the mean.
        standard_error: its standard error; NaN if unknown. 0 if all values are equal: use the interval then.
        n: number of samples.
        interval: 95 % confidence interval, (low, high); None if unknown.
    """

    mean: float
    standard_error: float
    n: int
    interval: tuple[float, float] | None = None


def estimate(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Return the mean of `values` with its standard error and interval.

    Without clusters, samples are independent: sqrt(s² / n), with n − 1 in s². With clusters, since samples about one
    picture are correlated, the error is that of the jackknife over clusters, which few and uneven clusters do not
    deceive. The error of a single sample or cluster is unknown: NaN.

    The interval of values between 0 and 1 is Wilson's, with the number of independent samples that gives the same
    standard error; it is never empty, even if all values are equal. That of other values is the mean ± t errors. Both
    use the t quantile for the number of samples or clusters.

    Raises:
        ConfigError: there are no values, or not one cluster per value.
    """
    return macro_estimate([values], None if clusters is None else [clusters])


def macro_estimate(groups: Sequence[Sequence[float]], clusters: Sequence[Sequence[Hashable]] | None = None) -> Estimate:
    """Return the mean of the means of G groups, each of which counts once, whatever its size.

    Args:
        groups: the values of each group.
        clusters: the cluster of each value; a cluster may have values in several groups. None: independent samples.

    Raises:
        ConfigError: a group has no values, or there is not one cluster per value.
    """
    if not groups or not all(groups):
        raise ConfigError("There is no sample to take the mean of.")
    for number, values in enumerate(groups):
        if clusters is not None and len(clusters[number]) != len(values):
            raise ConfigError(
                f"There are {len(values)} values and {len(clusters[number])} clusters; expected one cluster a value."
            )
    means = [math.fsum(values) / len(values) for values in groups]
    mean, n = math.fsum(means) / len(groups), sum(map(len, groups))
    if clusters is None:
        parts = [_variance_of_mean(values, center) for values, center in zip(groups, means, strict=True)]
        error, units = math.sqrt(math.fsum(parts)) / len(groups), n
    else:
        error, units = _jackknife(groups, means, clusters)
    if units < 2:
        error = math.nan
    return Estimate(mean, error, n, _interval(groups, mean, error, units))


def sum_estimates(parts: Sequence[Estimate]) -> Estimate:
    """Return the sum of independent means, with its standard error; the interval is ± t errors of the smallest part."""
    error = math.sqrt(math.fsum(part.standard_error**2 for part in parts))
    total, n = math.fsum(part.mean for part in parts), sum(part.n for part in parts)
    if math.isnan(error):
        return Estimate(total, error, n)
    reach = t_quantile(max(1, min(part.n for part in parts) - 1)) * error
    return Estimate(total, error, n, (total - reach, total + reach) if reach > 0 else None)


def _variance_of_mean(values: Sequence[float], mean: float) -> float:
    if len(values) < 2:
        return math.nan
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def _jackknife(
    groups: Sequence[Sequence[float]], means: Sequence[float], clusters: Sequence[Sequence[Hashable]]
) -> tuple[float, int]:
    """Return the standard error of the macro average, leaving out one cluster at a time (CR3), and C.

    C is the number of clusters of equal weight that vary as much (Kish 1965): uneven clusters count as fewer.
    """
    changes: dict[Hashable, float] = {}
    weights: dict[Hashable, float] = {}
    for values, mean, names in zip(groups, means, clusters, strict=True):
        sums: dict[Hashable, tuple[float, int]] = {}
        for value, name in zip(values, names, strict=True):
            deviation, size = sums.get(name, (0.0, 0))
            sums[name] = (deviation + value - mean, size + 1)
        for name, (deviation, size) in sums.items():
            if size == len(values):
                return math.nan, 1  # a group within one cluster says nothing about its spread
            changes[name] = changes.get(name, 0.0) + deviation / (len(values) - size) / len(groups)
            weights[name] = weights.get(name, 0.0) + size / len(values)
    count = len(changes)
    if count < 2:
        return math.nan, count
    center = math.fsum(changes.values()) / count
    error = math.sqrt((count - 1) / count * math.fsum((change - center) ** 2 for change in changes.values()))
    even = math.fsum(weights.values()) ** 2 / math.fsum(weight**2 for weight in weights.values())
    return error, max(2, round(even))


def _interval(groups: Sequence[Sequence[float]], mean: float, error: float, units: int) -> tuple[float, float] | None:
    is_share = all(0 <= value <= 1 for values in groups for value in values)
    if math.isnan(error):
        return wilson_interval(mean, 1, t_quantile(1)) if is_share and units == 1 else None
    t = t_quantile(units - 1)
    if not is_share:
        return (mean - t * error, mean + t * error) if error > 0 else None
    if len(groups) == 1 and all(value in (0, 1) for value in groups[0]) and units == len(groups[0]):
        return wilson_interval(mean, units)  # a proportion of independent samples
    independent = mean * (1 - mean) / error**2 if error > 0 else math.inf
    return wilson_interval(mean, min(float(units) if error == 0 else independent, 1e12), t)


@lru_cache(maxsize=4096)
def t_quantile(degrees: float) -> float:
    """Return the two-sided 95 % quantile of Student's t distribution: 1.96 for infinitely many degrees of freedom."""
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < CONFIDENCE:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < CONFIDENCE else (low, middle)
    return (low + high) / 2


def t_probability(t: float, degrees: float) -> float:
    """Return P(|T| ≤ t) for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if degrees > 1000:
        return math.erf(t / math.sqrt(2))
    degrees = round(degrees)
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = 1.0, 0.0
    if degrees % 2:
        term = cosine
        for k in range(3, degrees + 1, 2):
            total += term
            term *= cosine * cosine * (k - 1) / k
        return 2 / math.pi * (angle + sine * total)
    for k in range(2, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return sine * total


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same samples: the mean difference (second less first), its error, and a two-sided p-value.

    `gained` and `lost` count the samples on which the second run scores higher and lower.
    """

    difference: Estimate
    p_value: float
    gained: int
    lost: int


def compare(first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Comparison:
    """Compare two runs sample by sample: the error of the difference is smaller than that of two separate means.

    If at most `SMALL_SAMPLE` samples (or clusters) differ, the p-value is that of the exact sign test; for right and
    wrong answers this is McNemar's exact test. Otherwise it is that of the difference over its standard error, which
    follows a t distribution.

    Raises:
        ConfigError: the runs are not of the same samples.
    """
    if len(first) != len(second):
        raise ConfigError(
            f"The runs have {len(first)} and {len(second)} samples; a paired comparison needs the same ones."
        )
    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = estimate(differences, clusters)
    # A proportion's interval does not fit differences, which may be negative.
    difference = Estimate(found.mean, found.standard_error, found.n, _symmetric(found, clusters))
    units = _sums(differences, clusters)
    above, below = sum(unit > 0 for unit in units), sum(unit < 0 for unit in units)
    if above + below <= SMALL_SAMPLE or difference.standard_error == 0:
        p_value = sign_test(above, below)
    else:
        p_value = 1 - t_probability(abs(difference.mean) / difference.standard_error, len(units) - 1)
    return Comparison(difference, p_value, sum(d > 0 for d in differences), sum(d < 0 for d in differences))


def sign_test(above: int, below: int) -> float:
    """Return the exact two-sided p-value of `above` against `below` heads of a fair coin."""
    n = above + below
    tail = sum(math.comb(n, k) for k in range(min(above, below) + 1)) / 2**n
    return min(1.0, 2 * tail)


def _symmetric(found: Estimate, clusters: Sequence[Hashable] | None) -> tuple[float, float] | None:
    if math.isnan(found.standard_error) or found.standard_error == 0:
        return None
    reach = t_quantile((found.n if clusters is None else len(set(clusters))) - 1) * found.standard_error
    return found.mean - reach, found.mean + reach


def _sums(differences: Sequence[float], clusters: Sequence[Hashable] | None) -> list[float]:
    """Return the independent differences: of samples, or summed over each cluster."""
    if clusters is None:
        return list(differences)
    sums: dict[Hashable, float] = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + difference
    return list(sums.values())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down method (1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it or exceeds 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
