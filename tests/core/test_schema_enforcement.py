"""JSON schemas of which xgrammar ignores a part are refused, and no others: each case is compared with xgrammar."""

from typing import Any

import pytest
import xgrammar

from vila_core.child_process import ChildFailedError
from vila_core.engine import grammar
from vila_core.engine.enforcement import unenforceable
from vila_core.errors import GenerationError

END = 256
BYTES = [bytes([byte]) for byte in range(256)] + [b""]
VOCABULARY = xgrammar.TokenizerInfo(BYTES, xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[END])


def accepts(schema: dict[str, Any], answer: str) -> bool:
    compiler = xgrammar.GrammarCompiler(VOCABULARY, cache_enabled=False)
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(schema, any_whitespace=False))
    return matcher.accept_string(answer) and matcher.accept_token(END)


def text(**keywords: object) -> dict[str, Any]:
    return {"type": "string", **keywords}


def whole(**keywords: object) -> dict[str, Any]:
    return {"type": "integer", **keywords}


A = {"a": {"const": 1}}


@pytest.mark.parametrize(
    ("schema", "answer", "problem"),
    [
        ({"minimum": 3}, "1", "'minimum' without 'type'"),
        ({"multipleOf": 3}, "4", "'multipleOf' without 'type'"),
        ({"minLength": 3}, '"a"', "'minLength' without 'type'"),
        ({"pattern": "^a$"}, '"b"', "'pattern' without 'type'"),
        ({"maxItems": 1}, "[1, 2]", "'maxItems' without 'type'"),
        ({"minProperties": 1}, "{}", "'minProperties' without 'type'"),
        ({"patternProperties": {"^a$": {"const": 1}}}, '{"a": 2}', "'patternProperties' without 'type'"),
        ({"propertyNames": {"maxLength": 1}}, '{"ab": 1}', "'propertyNames' without 'type'"),
        ({"type": []}, "1", "an empty 'type'"),
        ({"type": "array", "items": {"anyOf": []}, "minItems": 1}, "[]", "an empty 'anyOf'"),
        ({"properties": {"a": {"type": "number", "minimum": 1e-8, "maximum": 1e-7}}}, '{"a": }', "bounds of a number"),
        (whole(enum=["a"]), '"a"', "'enum' with a value that is not of the 'type'"),
        (whole(enum=[1, True]), "true", "'enum' with a value that is not of the 'type'"),
        ({"type": ["string", "null"], "enum": ["a", None, 3]}, "3", "'enum' with a value"),
        (text(const=5), "5", "'const' with a value that is not of the 'type'"),
        ({"const": 1, "enum": [2]}, "1", "'const' with a value that is not in 'enum'"),
        ({"enum": [1, 2], "minimum": 2}, "1", "'enum' beside 'minimum'"),
        ({"enum": ["a", "bbb"], "minLength": 2}, '"a"', "'enum' beside 'minLength'"),
        ({"enum": [[1], [2, 3]], "minItems": 2}, "[1]", "'enum' beside 'minItems'"),
        (text(format="date", minLength=20), '"2020-01-01"', "'format' together with 'minLength'"),
        (text(format="ipv4", maxLength=7), '"10.10.10.10"', "'format' together with 'minLength' or 'maxLength'"),
        (text(format="uri-reference", minLength=1), '""', "'format' together with 'minLength'"),
        (text(format="date", pattern="^x$"), '"2020-01-01"', "'format' together with 'pattern'"),
        (text(pattern='^"$'), '"""', "a pattern with a quotation mark"),
        (text(pattern=r"^\\d$"), r'"\d"', "a pattern with a quotation mark, a backslash"),
        (text(pattern=r"^\x22$"), '"""', "a pattern with a quotation mark"),
        (text(pattern=r"^\u{5c}$"), '"\\"', "a pattern with a quotation mark"),
        (text(pattern='^["]$'), '"""', "a pattern with a quotation mark"),
        (text(pattern=r"^\t$"), '"\t"', "a pattern with a quotation mark"),
        (text(pattern=r"^\cA$"), '"\x01"', "a pattern with a quotation mark"),
        (
            {"type": "object", "patternProperties": {'^"$': {"const": 1}}, "additionalProperties": False},
            '{""": 1}',
            "a pattern with a quotation mark",
        ),
        ({"properties": A, "required": ["a", "z"]}, '{"a": 1}', "'required' with 'z', which is not in 'properties'"),
        (
            {"type": "object", "properties": A, "patternProperties": {"^a$": {"const": 2}}},
            '{"a": 1, "a": 2}',
            "'patternProperties' of several patterns, or beside 'properties'",
        ),
        (
            {"type": "object", "properties": A, "propertyNames": {"maxLength": 0}},
            '{"a": 1}',
            "'propertyNames' beside 'properties'",
        ),
        (whole(multipleOf=4096), "4097", "a 'multipleOf' that is not a whole number up to 1,024"),
        (whole(multipleOf=2.5), "6", "a 'multipleOf' that is not a whole number"),
        ({"type": "number", "multipleOf": 5}, "6", "'multipleOf' of a type other than integer"),
        ({"type": ["number", "integer"], "multipleOf": 5}, "6", "'multipleOf' of a type other than integer"),
        (whole(multipleOf=5, minimum=3), "6", "'multipleOf' with one bound only"),
        (whole(multipleOf=1000, minimum=0, maximum=10_000), "1001", "'multipleOf' between bounds that are far apart"),
        ({"$dynamicRef": "#x"}, "6", "'$dynamicRef'"),
    ],
    ids=str,
)
def test_what_xgrammar_ignores_is_refused(schema: dict[str, Any], answer: str, problem: str) -> None:
    assert accepts(schema, answer), "xgrammar enforces it now: allow it"
    problems = unenforceable(schema)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (text(const="a"), '"a"', '"b"'),
        (text(const="a", enum=["a"]), '"a"', '"b"'),
        (whole(enum=[1, 2.0]), "1", "3"),
        ({"type": ["string", "null"], "enum": ["a", None]}, "null", '"b"'),
        ({"properties": A, "minProperties": 1}, '{"a": 1}', "{}"),
        ({"items": {"const": 1}, "minItems": 1}, "[1]", "[]"),
        (text(format="uri", minLength=1, maxLength=2083), '"http://a"', '"x"'),  # pydantic's HttpUrl
        (text(format="unknown", maxLength=2), '"ab"', '"abc"'),
        (text(pattern=r'^[^"\\]$'), '"a"', '"""'),
        (text(pattern=r"^[ -~]$"), '"a"', '"""'),
        (text(pattern="^[\\w\"']$"), '"\'"', '"""'),
        (text(pattern=r"^\S\.\/\-\u00e9$"), '"a./-é"', '"a./-e"'),
        (
            {"type": "object", "propertyNames": {"maxLength": 1}, "additionalProperties": {"const": 1}},
            '{"a": 1}',
            '{"ab": 1}',
        ),
        (
            {"type": "object", "patternProperties": {"^a$": {"const": 1}}, "additionalProperties": False},
            '{"a": 1}',
            '{"b": 1}',
        ),
        ({"type": "number", "minimum": 0.5, "maximum": 0.500003}, "0.500001", "0.499999"),
        ({"type": "number", "minimum": 0.1234567}, "0.123457", "0.123456"),
        (whole(multipleOf=1024), "2048", "2049"),
        (whole(multipleOf=5, minimum=-100, exclusiveMaximum=100), "95", "96"),
        (whole(multipleOf=5, minimum=0, maximum=4995), "4995", "4996"),
        (whole(multipleOf=1000, minimum=0, maximum=9999), "9000", "9001"),
        ({"type": ["integer", "null"], "multipleOf": 5}, "null", "6"),
    ],
    ids=str,
)
def test_what_xgrammar_enforces_is_allowed(schema: dict[str, Any], right: str, wrong: str) -> None:
    assert unenforceable(schema) == []
    assert accepts(schema, right)
    assert not accepts(schema, wrong)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("std::bad_alloc", "The JSON schema is too large to compile"),
        ("[11:21:01] /x/y.cc:49: Check failed: (value <= MAX) is false: Integer exceeds maximum limit", "invalid: Int"),
        ('"type mismatch! call is<type>() before get<type>()" && is<std::string>()', "has the wrong type"),
    ],
)
def test_the_words_of_the_compiler(monkeypatch: pytest.MonkeyPatch, said: str, message: str) -> None:
    def fail(*_: object) -> bytes:
        raise ChildFailedError(said)

    monkeypatch.setattr(grammar, "run_in_child", fail)
    with pytest.raises(GenerationError, match=message) as caught:
        grammar._Compiler(VOCABULARY).compile({"const": 1})
    assert "is false" not in str(caught.value)
