"""Hostile JSON schemas: an answer or a one-line `VilaError`, within time and memory."""

import random
from collections.abc import Iterator
from functools import cache, partial
from typing import Any
from unittest import mock

import pytest
from tests.fuzz.bounded import assert_bounded

import vila_core as vila
from vila_core.engine import grammar

pytestmark = pytest.mark.slow


def nest(levels: int, *, items: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema} if items else {"type": "object", "properties": {"a": schema}}
    return schema


def properties(number: int, *, required: bool) -> dict[str, Any]:
    names = [f"p{index}" for index in range(number)]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    return schema | ({"required": names} if required else {})


TREE = {
    f"d{index + 1}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{index}"}, "b": {"$ref": "#/$defs/d0"}}}
    for index in range(30)
}
SCHEMAS: dict[str, Any] = {
    "deep": nest(900),
    "very deep": nest(5000),
    "deep lists": nest(45, items=True),
    "deep objects": nest(45),
    "enum": {"enum": [f"v{index}" for index in range(100_000)]},
    "smaller enum": {"enum": [f"v{index}" for index in range(4_000)]},
    "properties": properties(10_000, required=False),
    "optional properties": properties(1_000, required=False),
    "required properties": properties(1_000, required=True),
    "definitions": {"$ref": "#/$defs/d30", "$defs": {"d0": {"type": "string"}, **TREE}},
    "itself": {"$ref": "#"},
    "circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "circle of alternatives": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    "circle of one alternative": {"anyOf": [{"$ref": "#"}]},
    "remote": {"$ref": "http://127.0.0.1:9/x"},
    "file": {"$ref": "file:///etc/passwd"},
    "reference to nothing": {"$ref": "#/a/../../b"},
    "reference to a number": {"$ref": 5},
    "alternatives": {"anyOf": [{"const": index} for index in range(5_000)]},
    "repeats of repeats": {"type": "array", "maxItems": 99, "items": {"type": "array", "maxItems": 99, "items": {}}},
    "long text": {"type": "string", "minLength": 10**6, "maxLength": 10**6},
    "text of 1000": {"type": "string", "maxLength": 1000},
    "catastrophic pattern": {"type": "string", "pattern": "^(a+)+$"},
    "repeated pattern": {"type": "string", "pattern": "^(((a{0,100}){0,100}){0,100}){0,100}$"},
    "billion": {"type": "string", "pattern": "a{1000000000}"},
    "deep pattern": {"type": "string", "pattern": "(" * 450 + ")" * 450},
    "lookahead": {"type": "string", "pattern": "(?=a)(?<!b)\\1"},
    "unicode pattern": {"type": "string", "pattern": "[\u0000-\U0010ffff]{1,300}"},
    "multiple": {"type": "integer", "multipleOf": 1000},
    "multiple of zero": {"type": "integer", "multipleOf": 0},
    "range": {"type": "integer", "minimum": -(10**18), "maximum": 10**18},
    "tiny range": {"type": "number", "minimum": 1e-300, "maximum": 1e300},
    "properties counted": properties(60, required=False) | {"minProperties": 20, "maxProperties": 40},
    "billion properties": {"type": "object", "minProperties": 10**9},
    "long constant": {"const": "x" * 10**6},
    "wrong types": {"type": 5, "properties": [], "items": "x", "enum": {}, "required": 5, "anyOf": 5},
    "booleans": {"type": "object", "properties": {"a": True, "b": False}, "required": ["b"]},
    "null": {"properties": None, "enum": None},
    "empty": {},
    "format": {"type": "string", "format": "\x1b[31m"},
}


def mutated(number: int) -> Iterator[tuple[str, Any]]:
    """Yield schemas of random keywords with random values."""
    generator = random.Random(5)
    values: list[Any] = [0, -1, 3, 10**12, 1.5, "", "a", "[", None, True, [], {}, ["a"], {"type": "string"}, "#"]
    keys = "type properties items enum const anyOf allOf $ref pattern minLength maxItems required additionalProperties"
    for index in range(number):
        chosen = generator.sample(keys.split(), generator.randint(1, 4))
        yield f"random {index}", {key: generator.choice(values) for key in chosen}


CASES = {**SCHEMAS, **dict(mutated(120))}


@cache
def load() -> vila.Vila:
    return vila.load("vila-tiny")


def answer(name: str) -> str:
    with mock.patch.object(grammar, "COMPILE_SECONDS", 2.0):  # the limit itself is tested elsewhere
        return load().generate("x", json_schema=CASES[name], max_new_tokens=20)


def test_schemas() -> None:
    """By name, because some schemas are too deep to be pickled."""
    assert_bounded({name: partial(answer, name) for name in CASES})
