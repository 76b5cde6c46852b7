"""Settings of a run compared with those of an earlier one."""

import pytest

from vila_core.intervals import wilson_interval
from vila_core.settings_changes import describe_changes


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        ({"seed": 0}, {"seed": 0}, []),
        ({"seed": 0}, {"seed": 1}, ["seed was 0 and is 1"]),
        ({}, {"seed": 1}, ["seed was null and is 1"]),
        ({"seed": 1}, {}, ["seed was 1 and is null"]),
        ({"a": None}, {}, []),  # a setting that an older version did not have
        ({"model": {"seed": 0, "path": "x"}}, {"model": {"seed": 1, "path": "x"}}, ["model.seed was 0 and is 1"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a was 1 and is 2", "b was 1 and is 2"]),
        ({"a": {"b": 1}}, {"a": 5}, ["a was null and is 5", "a.b was 1 and is null"]),
        ({"a": [1]}, {"a": [2]}, ["a was [1] and is [2]"]),
        ({"a": "x" * 100}, {"a": 1}, [f'a was "{"x" * 58}… and is 1']),
        ({"a": "\n\ud800"}, {"a": 1}, ['a was "\\n\\ud800" and is 1']),
    ],
)
def test_changes_are_named(before: dict[str, object], now: dict[str, object], changes: list[str]) -> None:
    assert describe_changes(before, now) == changes


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_the_literature(right: int, n: int, low: float, high: float) -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    assert wilson_interval(right / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1 - right / n, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)
