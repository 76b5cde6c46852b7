"""JSON schemas that are too large, damaged or of the wrong kind: one line that says why."""

import json
import time

import pydantic
import pytest
import xgrammar

import vila_core as vila
from vila_core.child_process import ChildEndedError, ChildFailedError, run_in_child
from vila_core.engine import grammar
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.schema import read_schema
from vila_core.errors import GenerationError


class Animal(pydantic.BaseModel):
    legs: int
    wings: bool | None = None


class Unserializable(pydantic.BaseModel, arbitrary_types_allowed=True):
    value: object = pydantic.Field(default_factory=object)
    handler: GenerationConfig.__class__


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


CIRCLE: dict[str, object] = {"type": "array"}
CIRCLE["items"] = CIRCLE


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (5, "is 5: expected a JSON schema: a dict, JSON text or a pydantic class"),
        ([{"type": "string"}], "expected a JSON schema: a dict, JSON text or a pydantic class"),
        (int, "expected a JSON schema: a dict, JSON text or a pydantic class"),
        (Animal(legs=4), "expected a JSON schema: a dict, JSON text or a pydantic class"),
        (Unserializable, "this pydantic class has no JSON schema"),
        ("[" * 100_000, "nests too deeply; the limit is 100 levels"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nests too deeply"),
        ('"' + "x" * 2_000_000 + '"', "has 2,000,002 characters; the limit is 1,000,000"),
        (nested(900), "nests too deeply, or contains itself; the limit is 100 levels"),
        (nested(5000), "nests too deeply"),
        (CIRCLE, "nests too deeply, or contains itself"),
        ({"enum": list(range(100_000))}, "more than 20,000 values"),
        ({"enum": list(range(6_000))}, "/ has more than 5,000 members in 'enum'"),
        ({"properties": {f"p{i}": {} for i in range(10_000)}}, "/ has more than 5,000 members in 'properties'"),
        (
            {"properties": {"a": {"maxLength": 10**9}}},
            "/properties/a has 'maxLength' 1000000000; the limit is 1,000,000",
        ),
        ({"minLength": 1.5}, "/ has 'minLength' 1.5; expected a whole number"),
        ({"maxItems": -1}, "/ has 'maxItems' -1; expected a whole number"),
        ({"maxItems": "5"}, "/ has 'maxItems' '5'; expected a whole number"),
        ({"minLength": 5, "maxLength": 3}, "'minLength' that is greater than its 'maxLength'"),
        ({"minItems": 5, "maxItems": 3}, "'minItems' that is greater than its 'maxItems'"),
        ({"minimum": 10**30}, "/minimum is a whole number of more than 64 bits"),
        ({"maximum": float("inf")}, "/maximum is inf, which JSON cannot hold"),
        ({"const": float("nan")}, "/const is nan, which JSON cannot hold"),
        ('{"const": NaN}', "/const is nan, which JSON cannot hold"),
        ({"enum": {1, 2}}, "/enum is a set, which JSON cannot hold"),
        ({"const": b"x"}, "/const is a bytes, which JSON cannot hold"),
        ({"type": print}, "/type is a builtin_function_or_method, which JSON cannot hold"),
        ({1: 2}, "/ has a key that is a int; JSON keys are texts"),
        ({"const": "\ud800"}, "/const is not valid Unicode"),
        ({"properties": {"\ud800": {}}}, "is not valid Unicode"),
        ({"pattern": "a" * 2000}, "a pattern of 2,000 characters; the limit is 1,000"),
        ({"pattern": "^(((a{0,100}){0,100}){0,100}){0,100}$"}, "repeats stand for more than 20,000 characters"),
        ({"pattern": "[a-z]{1000000000}"}, "repeats stand for more than 20,000 characters"),
        ({"pattern": "(?=a)b"}, "looks ahead or behind, which a grammar cannot enforce"),
        ({"$ref": "#"}, "/ refers to itself through '#'"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            "refers to itself through '#/\\$defs/[ab]', without a value in between",
        ),
    ],
    ids=range(36),
)
def test_schemas_beyond_the_limits(schema: object, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        GenerationConfig(json_schema=schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_pydantic_class_is_a_schema() -> None:
    config = GenerationConfig(json_schema=Animal)
    assert config.json_schema == Animal.model_json_schema()
    answer = vila.load("vila-tiny").generate("How many legs?", json_schema=Animal, max_new_tokens=300)
    Animal.model_validate_json(answer)


def test_a_schema_is_copied_as_plain_json() -> None:
    schema = {"enum": ("a", "b"), "description": "Grüße"}
    assert read_schema(schema) == {"enum": ["a", "b"], "description": "Grüße"}
    assert read_schema(json.dumps(schema)) == read_schema(schema)


def test_null_counts_as_no_limit() -> None:
    assert read_schema({"minLength": None, "maxLength": 3, "minItems": 2, "maxItems": None}) is not None


def test_recursion_through_a_value_is_allowed() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}, "name": {"type": "string"}}}
    assert read_schema(tree) == tree


@pytest.mark.parametrize(
    "pattern", ["[a-z]{1,300}[0-9]{5,2000}", r"^(\(\?=a){3}$", "(a|b)*c{2,}", "x{", "(", "[](){9}"]
)
def test_patterns_within_the_limits(pattern: str) -> None:
    assert read_schema({"pattern": pattern}) == {"pattern": pattern}


def hang() -> bytes:
    while True:
        time.sleep(1)


def test_a_child_process_that_hangs_or_crashes_is_an_error() -> None:
    assert run_in_child(lambda: b"x" * 1_000_000, 120) == b"x" * 1_000_000
    with pytest.raises(ChildFailedError, match="by zero"):
        run_in_child(lambda: bytes(1 // 0), 120)
    started = time.monotonic()
    with pytest.raises(ChildEndedError):
        run_in_child(hang, 0.5)
    assert time.monotonic() - started < 60
    with pytest.raises((ChildEndedError, ChildFailedError)):
        run_in_child(lambda: bytes(10**11), 120)


def test_a_schema_that_takes_too_long_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vila.load("vila-tiny")
    monkeypatch.setattr("vila_core.engine.grammar.COMPILE_SECONDS", 1.0)
    schema = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1_500)}}
    with pytest.raises(GenerationError, match=r"too large to compile: it takes more than 1 s.*fewer properties"):
        model.generate("x", json_schema=schema)


@pytest.mark.parametrize(("tokens", "seconds"), [(1_000, 20.0), (20_000, 20.0), (32_000, 32.0), (151_648, 151.648)])
def test_a_large_vocabulary_gets_more_time_to_compile(tokens: int, seconds: float) -> None:
    texts = [str(number).encode() for number in range(tokens)]
    vocabulary = xgrammar.TokenizerInfo(texts, xgrammar.VocabType.RAW, vocab_size=tokens, stop_token_ids=[0])
    compiler = grammar._Compiler(vocabulary)
    assert compiler.max_seconds == pytest.approx(seconds)
    assert compiler.compile({"enum": ["1", "2"]}) is compiler.compile({"enum": ["1", "2"]})
