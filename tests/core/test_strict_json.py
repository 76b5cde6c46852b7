"""Numbers that JSON has not are null, and named beside."""

import json
import math
from typing import Any

import pytest

from vila_core.strict_json import to_strict_json


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "written", "named"),
    [
        ({"a": math.nan}, {"a": None}, {"a": "nan"}),
        ({"a": {"b/c": math.inf, "d": 1.5}}, {"a": {"b/c": None, "d": 1.5}}, {"a.b/c": "inf"}),
        ({"a": [1, (-math.inf, 2)]}, {"a": [1, [None, 2]]}, {"a.1.0": "-inf"}),
    ],
)
def test_numbers_that_are_not_finite_are_null_and_named(value: Any, written: Any, named: Any) -> None:
    assert strict(to_strict_json(value)) == {**written, "not_finite": named}


def test_finite_values_stay() -> None:
    value = {"a": [1, 2.5, None, True, "nan"], "b": {"c": {}}}
    assert strict(to_strict_json(value)) == value
    assert to_strict_json({"a": "ä"}, indent=1, ensure_ascii=False) == '{\n "a": "ä"\n}'
