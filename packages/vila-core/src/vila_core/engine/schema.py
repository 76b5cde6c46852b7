"""Finds the parts of a JSON schema (draft 2020-12) that a grammar cannot enforce. Such schemas are refused."""

from collections.abc import Iterator, Mapping
from typing import Any

_UNENFORCED = ("not", "if", "contains", "dependentRequired", "dependentSchemas", "dependencies")
_ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf")
_CONSTRAINTS = frozenset(
    {
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    }
    | {"items", "prefixItems", "minItems", "maxItems", "pattern", "minLength", "maxLength", "enum", "const"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "propertyNames")


def unenforceable(schema: Mapping[str, Any]) -> list[str]:
    """Return the parts of `schema` that a grammar cannot enforce, each as a JSON pointer and a reason."""
    return [f"{place or '/'}: {reason}" for place, part in _parts(schema, "") for reason in _reasons(part)]


def _reasons(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"'{keyword}'" for keyword in _UNENFORCED if keyword in schema)
    if schema.get("uniqueItems") is True:
        yield "'uniqueItems'"
    if "multipleOf" in schema and schema.get("type") != "integer":
        yield "'multipleOf' of a type other than integer"
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        yield "'pattern' together with 'minLength' or 'maxLength'"
    if schema.get("required") and "properties" not in schema:
        yield "'required' without 'properties'"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        yield "'allOf' of several schemas"
    if isinstance(schema.get("$ref"), str) and not schema["$ref"].startswith("#"):
        yield "a '$ref' to another document"
    alternatives = [keyword for keyword in _ALTERNATIVES if keyword in schema]
    beside = sorted(_CONSTRAINTS.intersection(schema)) + alternatives[1:]
    if alternatives and beside:
        yield f"'{alternatives[0]}' beside '{beside[0]}' (move it inside)"


def _parts(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield `schema` and every schema inside it. The grammar compiler reports values that are not schemas."""
    yield place, schema
    inner: list[tuple[str, object]] = [(key, schema[key]) for key in _SCHEMAS if key in schema]
    for key in _MAPS_OF_SCHEMAS:
        if isinstance(schema.get(key), dict):
            inner += [(f"{key}/{name}", part) for name, part in schema[key].items()]
    for key in _LISTS_OF_SCHEMAS:
        if isinstance(schema.get(key), list):
            inner += [(f"{key}/{index}", part) for index, part in enumerate(schema[key])]
    for step, part in inner:
        if isinstance(part, dict):
            yield from _parts(part, f"{place}/{step}")  # pyright: ignore[reportUnknownArgumentType]
