"""Means, standard errors and paired comparisons, against values computed by hand and by simulation."""

import math
import random

import pytest

from vila_core.errors import ConfigError
from vila_eval.statistics import compare, estimate, holm


def test_mean_and_error_by_hand():
    found = estimate([1.0, 0.0, 1.0, 1.0])  # deviations .25 .75 .25 .25: squares sum to 0.75; /3 /4
    assert (found.mean, found.n) == (0.75, 4)
    assert found.standard_error == pytest.approx(0.25)


def test_clusters_of_one_differ_only_by_the_small_sample_factor():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    plain, clustered = estimate(values), estimate(values, range(5))
    assert clustered.standard_error == pytest.approx(plain.standard_error * math.sqrt(4 / 5))


def test_copies_of_a_sample_are_no_news():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    once = estimate(values, range(6))
    thrice = estimate([value for value in values for _ in range(3)], [index for index in range(6) for _ in range(3)])
    assert thrice.mean == once.mean
    assert thrice.standard_error == pytest.approx(once.standard_error)


def test_errors_cover_the_truth():
    generator = random.Random(0)
    covered = 0
    for _ in range(400):
        found = estimate([float(generator.random() < 0.3) for _ in range(200)])
        covered += abs(found.mean - 0.3) < 1.96 * found.standard_error
    assert 0.91 < covered / 400 < 0.985


def test_one_sample_has_an_unknown_error():
    assert math.isnan(estimate([1.0]).standard_error)
    assert math.isnan(estimate([1.0, 0.0], ["a", "a"]).standard_error)


def test_pairing_sees_what_separate_means_do_not():
    generator = random.Random(1)
    hard = [generator.random() for _ in range(100)]
    better = [value + 0.02 + 0.001 * generator.random() for value in hard]
    found = compare(hard, better)
    assert found.difference.mean == pytest.approx(0.0205, abs=5e-4)
    assert found.p_value < 1e-6
    assert (found.gained, found.lost) == (100, 0)


def test_equal_runs():
    same = compare([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (same.difference.mean, same.p_value, same.gained, same.lost) == (0.0, 1.0, 0, 0)
    assert compare([0.0, 0.0], [1.0, 1.0]).p_value == 0.0


def test_bad_input():
    with pytest.raises(ConfigError, match="no sample"):
        estimate([])
    with pytest.raises(ConfigError, match="one cluster a value"):
        estimate([1.0], ["a", "b"])
    with pytest.raises(ConfigError, match="same ones"):
        compare([1.0], [1.0, 0.0])


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and none below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
