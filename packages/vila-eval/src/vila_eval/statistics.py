"""Means with plain or clustered standard errors, and paired comparison of two runs.

Miller 2024, "Adding Error Bars to Evals". n samples, C clusters (such as the questions about one picture).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from vila_core.errors import ConfigError


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` samples and the standard error of that mean, in the unit of the samples."""

    mean: float
    standard_error: float
    n: int


def estimate(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Return the mean of `values` with its standard error.

    Without clusters, samples are independent: sqrt(s² / n), with n − 1 in s². With clusters, the deviations within a
    cluster are summed before squaring (the sandwich estimator, equation 4), since samples about one picture are
    correlated. The error of a single sample is unknown: NaN.

    Raises:
        ConfigError: there are no values, or not one cluster per value.
    """
    n = len(values)
    if n == 0:
        raise ConfigError("There is no sample to take the mean of.")
    mean = math.fsum(values) / n
    if clusters is None:
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else math.nan
        return Estimate(mean, error, n)
    if len(clusters) != n:
        raise ConfigError(f"There are {n} values and {len(clusters)} clusters; expected one cluster a value.")
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    error = math.sqrt(math.fsum(deviation**2 for deviation in sums.values())) / n if len(sums) > 1 else math.nan
    return Estimate(mean, error, n)


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

    The p-value assumes that the difference over its standard error is normal. If all differences are equal, it is 1 for
    a difference of zero and 0 otherwise.

    Raises:
        ConfigError: the runs are not of the same samples.
    """
    if len(first) != len(second):
        raise ConfigError(
            f"The runs have {len(first)} and {len(second)} samples; a paired comparison needs the same ones."
        )
    differences = [b - a for a, b in zip(first, second, strict=True)]
    difference = estimate(differences, clusters)
    if difference.standard_error > 0:
        p_value = math.erfc(abs(difference.mean) / difference.standard_error / math.sqrt(2))
    else:
        p_value = 1.0 if difference.mean == 0 or math.isnan(difference.standard_error) else 0.0
    return Comparison(difference, p_value, sum(d > 0 for d in differences), sum(d < 0 for d in differences))


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
