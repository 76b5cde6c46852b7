"""Confidence intervals of proportions."""

import math

NORMAL_95 = 1.959963984540054
"""The two-sided 95 % quantile of the normal distribution."""


def wilson_interval(share: float, n: float, z: float = NORMAL_95) -> tuple[float, float]:
    """Return the score interval (low, high) of a proportion of `n` independent samples, for the quantile `z`.

    It is never empty, even at 0 and 1. Source: Wilson 1927.
    """
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - reach), min(1.0, center + reach)
