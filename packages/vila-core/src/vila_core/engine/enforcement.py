"""Finds the parts of a JSON schema that a grammar cannot enforce.

xgrammar silently ignores much of what it does not support. An answer could then break its schema, or not even be JSON,
so such schemas are refused. `tests/core/test_schema_enforcement.py` compares this module with xgrammar.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from vila_core.engine.schema import parts_of, patterns_of

MAX_MULTIPLE_OF = 1024
"""xgrammar ignores a larger `multipleOf`."""
MAX_MULTIPLE_OF_RANGE = 9_999
"""xgrammar ignores `multipleOf` if its bounds are further apart."""
MAX_MULTIPLES = 1_000
"""xgrammar ignores `multipleOf` if there are more multiples between its bounds."""
MIN_DISTANCE = 2e-6
"""xgrammar writes numbers with up to six decimals. Closer bounds may have no such number between them."""
LONG_STRING = 1_000
"""A `maxLength` of at least this is accepted beside a `format`, and not enforced: pydantic's `HttpUrl` has one."""

_UNSUPPORTED = (
    "not",
    "if",
    "contains",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "$dynamicRef",
    "$recursiveRef",
)
_ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf")
_BY_TYPE = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""Types -> keywords that restrict their values."""
_IMPLIED = {
    "object": ("properties", "additionalProperties", "unevaluatedProperties"),
    "array": ("items", "prefixItems", "unevaluatedItems"),
}
"""Types -> keywords from which xgrammar infers the type where `type` is absent."""
_RESTRICTIONS = tuple(keyword for keywords in _BY_TYPE.values() for keyword in keywords)
_FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
    | {"uri-reference", "uri-template", "json-pointer", "relative-json-pointer"}
)
"""Formats that xgrammar enforces; others restrict nothing."""
_EMPTY_FORMATS = ("uri-reference", "uri-template", "json-pointer")
"""Formats that the empty string satisfies."""


def unenforceable(schema: Mapping[str, Any]) -> list[str]:
    """Return the parts of `schema` that a grammar cannot enforce, each as a JSON pointer and a reason."""
    return [f"{place or '/'}: {reason}" for place, part in parts_of(schema, "") for reason in _reasons(part)]


def _reasons(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"'{keyword}'" for keyword in _UNSUPPORTED if keyword in schema)
    alternatives = [keyword for keyword in _ALTERNATIVES if keyword in schema]
    if alternatives:
        yield from _reasons_of_alternatives(schema, alternatives)
    elif "enum" in schema or "const" in schema:
        yield from _reasons_of_choices(schema)
    else:
        yield from _reasons_of_types(schema)
        yield from _reasons_of_strings(schema)
        yield from _reasons_of_objects(schema)
        yield from _reasons_of_numbers(schema)
    if schema.get("uniqueItems") is True:
        yield "'uniqueItems'"


def _reasons_of_alternatives(schema: Mapping[str, Any], alternatives: list[str]) -> Iterator[str]:
    """Check references and alternatives, beside which xgrammar ignores all other keywords."""
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        yield "'allOf' of several schemas"
    yield from (f"an empty '{keyword}'" for keyword in alternatives if schema[keyword] == [])
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference != "#" and not reference.startswith("#/"):
        yield "a '$ref' to an anchor" if reference.startswith("#") else "a '$ref' to another document"
    beside = sorted(keyword for keyword in (*_RESTRICTIONS, "enum", "const") if keyword in schema) + alternatives[1:]
    if beside:
        yield f"'{alternatives[0]}' beside '{beside[0]}' (move it inside)"


def _reasons_of_choices(schema: Mapping[str, Any]) -> Iterator[str]:
    """Check `enum` and `const`, whose values xgrammar allows even where another keyword excludes them."""
    keyword = "const" if "const" in schema else "enum"
    members: object = [schema["const"]] if keyword == "const" else schema["enum"]
    if not isinstance(members, list):
        return  # the compiler says so
    values = cast("list[object]", members)
    types = _types(schema)
    if types is not None and not all(any(_is_of(value, name) for name in types) for value in values):
        yield f"'{keyword}' with a value that is not of the 'type'"
    if keyword == "const" and isinstance(schema.get("enum"), list) and values[0] not in schema["enum"]:
        yield "'const' with a value that is not in 'enum'"
    if beside := [name for name in _RESTRICTIONS if name in schema]:
        yield f"'{keyword}' beside '{beside[0]}' (leave out the values that it excludes)"


def _types(schema: Mapping[str, Any]) -> list[object] | None:
    """Return the types that a schema allows; None for any."""
    found: object = schema.get("type")
    if found is None:
        return None
    return cast("list[object]", found) if isinstance(found, list) else [found]


_NAMES: dict[type, str] = {str: "string", list: "array", dict: "object", type(None): "null"}


def _is_of(value: object, name: object) -> bool:
    """Return whether a JSON value has a type. 1.0 is an integer, too."""
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int | float):
        return name == "number" or (name == "integer" and value == int(value))
    return name == _NAMES[type(value)]


def _reasons_of_types(schema: Mapping[str, Any]) -> Iterator[str]:
    types = _types(schema)
    if types == []:
        yield "an empty 'type'"
    if types is not None:
        return
    for kind, keywords in _BY_TYPE.items():
        ignored = [keyword for keyword in keywords if keyword in schema]
        if ignored and not any(keyword in schema for keyword in _IMPLIED.get(kind, ())):
            yield f"'{ignored[0]}' without 'type'"


def _reasons_of_strings(schema: Mapping[str, Any]) -> Iterator[str]:
    shortest, longest = schema.get("minLength") or 0, schema.get("maxLength")
    if "pattern" in schema and (shortest or longest is not None):
        yield "'pattern' together with 'minLength' or 'maxLength'"
    form = schema.get("format")
    if isinstance(form, str) and form in _FORMATS:
        if "pattern" in schema:
            yield "'format' together with 'pattern'"
        if shortest > (form not in _EMPTY_FORMATS) or (longest is not None and longest < LONG_STRING):
            yield "'format' together with 'minLength' or 'maxLength'"
    if any(map(_needs_escapes, patterns_of(schema))):
        yield "a pattern with a quotation mark, a backslash or a control character, which JSON writes in another way"


def _needs_escapes(pattern: str) -> bool:
    """Return whether strings that match a pattern must have a character that JSON escapes.

    xgrammar writes such a character unescaped. In a character class it leaves those out and writes the others.
    """
    for token in _TOKEN.findall(pattern):
        is_class = len(token) > 1 and token[0] == "["
        if is_class and token[1] == "^":
            continue
        characters: list[str] = _CHARACTER.findall(token[1:-1] if is_class else token)
        if characters and all(map(_is_escaped_in_json, characters)):
            return True
    return False


def _is_escaped_in_json(character: str) -> bool:
    if character[0] == "\\" and len(character) > 1:
        if character[1] in 'ntrfvae0c"\\':
            return True
        if digits := re.fullmatch(r"\\[xu]\{?([0-9A-Fa-f]+)\}?", character):
            return _is_code_of_escaped(int(digits[1], 16))
        return False
    return _is_code_of_escaped(ord(character[0]))


def _is_code_of_escaped(code: int) -> bool:
    return code < 0x20 or code in (0x22, 0x5C) or 0xD800 <= code < 0xE000


_ONE = r"\\(?:x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,6}\}|c[A-Za-z]|.)"
_TOKEN = re.compile(rf"{_ONE}|\[(?:\\.|[^\]])*\]|.", re.DOTALL)
_CHARACTER = re.compile(rf"{_ONE}|.", re.DOTALL)


def _reasons_of_objects(schema: Mapping[str, Any]) -> Iterator[str]:
    required, properties = schema.get("required"), schema.get("properties")
    if required and "properties" not in schema:
        yield "'required' without 'properties'"
    elif isinstance(required, list) and isinstance(properties, dict):
        names = cast("dict[str, object]", properties)
        if missing := [name for name in cast("list[object]", required) if name not in names]:
            yield f"'required' with {str(missing[0])[:40]!r}, which is not in 'properties'"
    patterns = cast("object", schema.get("patternProperties"))
    if isinstance(patterns, dict) and (properties or len(cast("dict[str, object]", patterns)) > 1):
        yield "'patternProperties' of several patterns, or beside 'properties': a name may match two"
    if "propertyNames" in schema and (properties or patterns):
        yield "'propertyNames' beside 'properties' or 'patternProperties'"


def _reasons_of_numbers(schema: Mapping[str, Any]) -> Iterator[str]:
    types, multiple = _types(schema) or [], schema.get("multipleOf")
    low, high = ([schema[name] for name in names if name in schema] for names in (_LOWER, _UPPER))
    if not all(isinstance(value, int | float) for value in (*low, *high)):
        return  # the compiler says so
    distance = min(high) - max(low) if low and high else None
    if "number" in types and distance is not None and 0 < distance < MIN_DISTANCE:
        yield f"bounds of a number that are closer together than {MIN_DISTANCE:f}"
    if not isinstance(multiple, int | float) or not types:
        return
    if "integer" not in types or "number" in types:
        yield "'multipleOf' of a type other than integer"
    elif multiple != int(multiple) or multiple > MAX_MULTIPLE_OF:
        yield f"a 'multipleOf' that is not a whole number up to {MAX_MULTIPLE_OF:,}"
    elif distance is None and (low or high):
        yield "'multipleOf' with one bound only"
    elif distance is not None and (distance > MAX_MULTIPLE_OF_RANGE or distance > multiple * (MAX_MULTIPLES - 1)):
        yield "'multipleOf' between bounds that are far apart"


_LOWER = ("minimum", "exclusiveMinimum")
_UPPER = ("maximum", "exclusiveMaximum")
