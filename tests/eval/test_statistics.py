"""Means, standard errors and paired comparisons, against values computed by hand and by simulation."""

import math
import random

import pytest

from vila_core.errors import ConfigError
from vila_eval.statistics import compare, estimate, holm, macro_estimate, sign_test, t_quantile


def test_mean_and_error_by_hand():
    found = estimate([1.0, 0.0, 1.0, 1.0])  # deviations .25 .75 .25 .25: squares sum to 0.75; /3 /4
    assert (found.mean, found.n) == (0.75, 4)
    assert found.standard_error == pytest.approx(0.25)


def test_clusters_of_one_are_independent_samples():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    plain, clustered = estimate(values), estimate(values, range(5))
    assert clustered.standard_error == pytest.approx(plain.standard_error)
    assert clustered.interval == pytest.approx(plain.interval)


def test_a_macro_average_counts_each_group_once():
    found = macro_estimate([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0]])
    assert (found.mean, found.n) == (0.625, 6)
    # The groups' errors are 1/4 and 1/2, and half of each counts.
    assert found.standard_error == pytest.approx(math.sqrt(1 / 16 + 1 / 4) / 2)


def test_groups_that_share_clusters_are_not_independent():
    groups = [[1.0, 0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 1.0]]
    apart = macro_estimate(groups, [range(5), range(5, 10)])
    together = macro_estimate(groups, [range(5), range(5)])  # the same five pictures
    assert together.standard_error == pytest.approx(estimate(groups[0]).standard_error)
    assert together.standard_error > 1.3 * apart.standard_error


def test_t_quantiles_are_those_of_tables():
    tabulated = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045, 100: 1.984, math.inf: 1.960}
    assert {degrees: round(t_quantile(degrees), 3) for degrees in tabulated} == tabulated


def test_wilson_intervals_by_hand():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = estimate([1.0] * right + [0.0] * (n - right)).interval
        assert found == pytest.approx((low, high), abs=5e-5)


def test_no_interval_is_empty():
    for values in ([1.0] * 40, [0.0] * 3, [0.5] * 10, [1.0]):
        low, high = estimate(values).interval
        assert low < high
    assert estimate([1.0] * 40).interval == pytest.approx((0.9124, 1.0), abs=1e-4)
    assert estimate([1.0] * 40, [index // 8 for index in range(40)]).interval[0] < 0.6  # five pictures, not forty
    assert estimate([3.0, 3.0]).interval is None  # points have no natural spread


def coverage(make, truth, runs):
    intervals = [make().interval for _ in range(runs)]
    return sum(low <= truth <= high for low, high in intervals) / runs


@pytest.mark.parametrize(("share", "n"), [(0.95, 10), (0.99, 30), (0.5, 10), (0.3, 200)])
def test_intervals_of_proportions_cover_the_truth(share, n):
    generator = random.Random(0)
    covered = coverage(lambda: estimate([float(generator.random() < share) for _ in range(n)]), share, 1000)
    assert covered > 0.9


@pytest.mark.parametrize("sizes", [(1, 2, 5, 20, 100), (3, 5, 8, 10, 30), (20,) * 5, (5,) * 30])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_intervals_with_few_and_uneven_clusters_cover_the_truth(sizes, share):
    generator = random.Random(0)

    def draw():
        values, clusters = [], []
        for number, size in enumerate(sizes):
            own = generator.betavariate(4 * share, 4 * (1 - share))  # correlation 0.2 within a cluster
            values += [float(generator.random() < own) for _ in range(size)]
            clusters += [number] * size
        return estimate(values, clusters)

    assert coverage(draw, share, 500) > 0.9


@pytest.mark.parametrize("clusters", [5, 12])
@pytest.mark.parametrize("share", [0.5, 0.85])
def test_intervals_of_macro_averages_with_shared_clusters_cover_the_truth(clusters, share):
    generator = random.Random(0)

    def draw():
        groups, names = [[] for _ in range(3)], [[] for _ in range(3)]
        for number in range(clusters):
            own = generator.betavariate(4 * share, 4 * (1 - share))
            for values, clusters_of_group in zip(
                groups, names, strict=True
            ):  # each picture has questions in each group
                size = generator.randint(1, 3)
                values += [float(generator.random() < own) for _ in range(size)]
                clusters_of_group += [number] * size
        return macro_estimate(groups, names)

    assert coverage(draw, share, 400) > 0.9


def test_two_samples_gained_are_no_evidence():
    found = compare([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    assert (found.gained, found.lost, found.p_value) == (2, 0, 0.5)


def test_few_differences_are_compared_by_the_exact_sign_test():
    # McNemar's exact test: 9 against 1 of ten coins, 2 (1 + 10) / 1024.
    first, second = [0.0] * 9 + [1.0] + [1.0] * 50, [1.0] * 9 + [0.0] + [1.0] * 50
    assert compare(first, second).p_value == pytest.approx(22 / 1024)
    assert sign_test(5, 5) == 1.0
    # Ten samples about two pictures are two independent differences.
    assert compare([0.0] * 10, [1.0] * 10, [index // 5 for index in range(10)]).p_value == 0.5


def test_p_values_are_uniform_without_a_difference():
    generator = random.Random(3)
    p_values = [compare(*([generator.gauss(0, 1) for _ in range(40)] for _ in range(2))).p_value for _ in range(600)]
    assert 0.03 < sum(p < 0.05 for p in p_values) / 600 < 0.07


@pytest.mark.parametrize(("n", "differing"), [(10, 0.4), (40, 0.3), (150, 0.4)])
def test_equal_models_seldom_differ_significantly(n, differing):
    # Right and wrong answers; the exact sign test up to 25 differing samples, the t test beyond.
    generator = random.Random(0)

    def p_value():
        first = [float(generator.random() < 0.6) for _ in range(n)]
        second = [float(generator.random() < 0.6) if generator.random() < differing else value for value in first]
        return compare(first, second).p_value

    assert sum(p_value() < 0.05 for _ in range(600)) / 600 < 0.07


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
    assert compare([0.0] * 30, [1.0] * 30).p_value == pytest.approx(2 / 2**30)


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
