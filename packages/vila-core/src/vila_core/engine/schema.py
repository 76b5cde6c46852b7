"""JSON schemas (draft 2020-12) for answers: read from what users give, and limited in size."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

MAX_TEXT = 1_000_000
"""Limit on the characters of a schema."""
MAX_DEPTH = 100
"""Limit on how deep a schema nests, counting every object and list."""
MAX_VALUES = 20_000
"""Limit on the values in a schema."""
MAX_MEMBERS = 5_000
"""Limit on the members of one `enum`, and the properties of one object."""
MAX_REPEATS = 1_000_000
"""Limit on lengths and counts, such as `maxLength`."""
MAX_PATTERN = 1_000
"""Limit on the characters of one `pattern`."""
MAX_EXPANDED_PATTERN = 20_000
"""Limit on the same with its counted repeats written out."""

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")

_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties")


def read_schema(schema: object) -> dict[str, Any]:
    """Return a JSON schema that is given as a dict, as JSON text or as a pydantic class.

    Raises:
        ValueError: it is something else, or exceeds a limit.
    """
    if isinstance(schema, type) and callable(to_schema := getattr(schema, "model_json_schema", None)):
        try:
            schema = to_schema()
        except Exception as error:  # noqa: BLE001 - pydantic raises many types for fields that JSON cannot hold
            raise ValueError(f"this pydantic class has no JSON schema ({error})") from None
    elif isinstance(schema, str):
        schema = _parse(schema)
        if not isinstance(schema, dict):
            raise ValueError("it is not a JSON object; expected a JSON schema such as {'type': 'object', …}")
    if not isinstance(schema, Mapping):
        raise ValueError("expected a JSON schema: a dict, JSON text or a pydantic class")
    plain = _PlainCopy().of(cast("object", schema), "", 1)
    _check_parts(plain)
    return plain


def _parse(text: str) -> object:
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has {len(text):,} characters; the limit is {MAX_TEXT:,}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"it nests too deeply; the limit is {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error}); expected a JSON schema such as {{'type': 'object', …}}") from None


class _PlainCopy:
    """Copies a value to what JSON can hold, within the limits on the whole schema."""

    def __init__(self) -> None:
        self._values = 0
        self._characters = 0

    def of(self, value: object, place: str, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, place)
        if isinstance(value, int | float):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{place or '/'} is {value}, which JSON cannot hold")
            if abs(value) >= 2**63 and isinstance(value, int):
                raise ValueError(f"{place or '/'} is a whole number of more than 64 bits")
            return value
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests too deeply, or contains itself; the limit is {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value).items()
            return {self._key(key, place): self.of(item, f"{place}/{key}", depth + 1) for key, item in items}
        if isinstance(value, list | tuple):
            items = cast("Sequence[object]", value)
            return [self.of(item, f"{place}/{index}", depth + 1) for index, item in enumerate(items)]
        raise ValueError(f"{place or '/'} is a {type(value).__name__}, which JSON cannot hold")

    def _key(self, key: object, place: str) -> str:
        if not isinstance(key, str):
            raise ValueError(f"{place or '/'} has a key that is a {type(key).__name__}; JSON keys are texts")
        return self._text(key, place)

    def _text(self, text: str, place: str) -> str:
        self._characters += len(text)
        if self._characters > MAX_TEXT:
            raise ValueError(f"it has more than {MAX_TEXT:,} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place or '/'} is not valid Unicode: {text[:40]!a}") from None
        return str(text)


def _check_parts(schema: Mapping[str, Any]) -> None:
    """Check the limits on single schemas, and that references do not lead in a circle."""
    for place, part in parts_of(schema, ""):
        where = place or "/"
        for key in ("enum", "properties", "patternProperties", "required"):
            if isinstance(members := part.get(key), dict | list) and len(cast("list[object]", members)) > MAX_MEMBERS:
                raise ValueError(f"{where} has more than {MAX_MEMBERS:,} members in '{key}'")
        for key in _COUNTS:
            count = part.get(key)
            if count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, int | float) or count != int(count) or count < 0:
                raise ValueError(f"{where} has '{key}' {count!r}; expected a whole number of at least 0")
            if count > MAX_REPEATS:
                raise ValueError(f"{where} has '{key}' {count}; the limit is {MAX_REPEATS:,}")
        for low, high in zip(_COUNTS[::2], _COUNTS[1::2], strict=True):
            if (part.get(low) or 0) > (MAX_REPEATS if part.get(high) is None else part[high]):
                raise ValueError(f"{where} has a '{low}' that is greater than its '{high}'")
        for pattern in patterns_of(part):
            _check_pattern(pattern, where)
        _follow_references(schema, part, where)


def patterns_of(part: Mapping[str, Any]) -> list[str]:
    """Return the regular expressions of one schema: for texts, and for the names of properties."""
    names = part.get("patternProperties")
    return [
        *([part["pattern"]] if isinstance(part.get("pattern"), str) else []),
        *(cast("dict[str, object]", names) if isinstance(names, dict) else ()),
    ]


def _check_pattern(pattern: str, where: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"{where} has a pattern of {len(pattern):,} characters; the limit is {MAX_PATTERN:,}")
    if _LOOKAROUND.search(_ESCAPED.sub("", pattern)):
        raise ValueError(f"{where} has a pattern that looks ahead or behind, which a grammar cannot enforce")
    if _expanded_size(pattern) > MAX_EXPANDED_PATTERN:
        raise ValueError(f"{where} has a pattern whose repeats stand for more than {MAX_EXPANDED_PATTERN:,} characters")


def _expanded_size(pattern: str) -> int:
    """Return about how many characters a regular expression has once its counted repeats are written out."""
    outer: list[int] = []  # sizes of the groups around
    size = last = 0  # of the group so far, and of what a repeat would apply to
    for token in _PATTERN_TOKEN.findall(pattern):
        if token == "(":
            outer.append(size)
            size = last = 0
        elif token == ")" and outer:
            last, size = size, outer.pop() + size
        elif len(token) > 2 and token[0] == "{":
            repeats = max(int(digits[:9]) for digits in re.findall("[0-9]+", token))
            size, last = size + last * max(repeats - 1, 0), last * repeats
        elif token not in ("*", "+", "?", "|"):
            size, last = size + 1, 1
    return size + sum(outer)


_ESCAPED = re.compile(r"\\.", re.DOTALL)
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
_PATTERN_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|\{[0-9]+(?:,[0-9]*)?\}|.", re.DOTALL)


def _follow_references(schema: Mapping[str, Any], part: Mapping[str, Any], where: str) -> None:
    """Raise `ValueError` if a reference leads back to itself without a value in between."""
    seen: list[object] = []
    pending = [part]
    while pending:
        current = pending.pop()
        if not isinstance(target := current.get("$ref"), str):
            continue
        if target in seen:
            raise ValueError(f"{where} refers to itself through '{target}', without a value in between")
        seen.append(target)
        pending += [found for found in [_resolve(schema, target)] if isinstance(found, dict)]


def _resolve(schema: Mapping[str, Any], reference: str) -> object:
    """Return what a local reference names, None if it does not exist. References are never fetched."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found: object = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(found, dict):
            return None
        found = cast("dict[str, object]", found).get(step.replace("~1", "/").replace("~0", "~"))
    return found


def parts_of(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield `schema` and every schema inside it. The grammar compiler reports values that are not schemas."""
    yield place, schema
    inner: list[tuple[str, object]] = [(key, schema[key]) for key in _SCHEMAS if key in schema]
    if isinstance(schema.get("propertyNames"), dict):  # names are texts
        inner.append(("propertyNames", {"type": "string", **schema["propertyNames"]}))
    for key in _MAPS_OF_SCHEMAS:
        if isinstance(schema.get(key), dict):
            inner += [(f"{key}/{name}", part) for name, part in schema[key].items()]
    for key in _LISTS_OF_SCHEMAS:
        if isinstance(schema.get(key), list):
            inner += [(f"{key}/{index}", part) for index, part in enumerate(schema[key])]
    for step, part in inner:
        if isinstance(part, dict):
            yield from parts_of(part, f"{place}/{step}")  # pyright: ignore[reportUnknownArgumentType]
