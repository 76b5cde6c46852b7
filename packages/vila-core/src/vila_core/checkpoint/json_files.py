"""JSON files of a checkpoint: strict reading and typed look-ups. Every error names the file and the key.

A file is refused, not interpreted, where readers disagree or Python would go astray: keys that stand twice, NaN and
numbers beyond float range, halves of surrogate pairs, null characters, deep nesting, millions of values.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from vila_core.errors import CheckpointError, shown
from vila_core.input_files import read_input

MAX_JSON_BYTES = 64 * 1024 * 1024
"""More than any real config, index or tokenizer (40 MB)."""
MAX_CONTAINERS, MAX_VALUES = 200_000, 400_000
"""Most objects and lists, and most values, in a config (read many times) or an index (one value per tensor)."""
MAX_VOCABULARY_CONTAINERS, MAX_VOCABULARY_VALUES = 2_000_000, 8_000_000
"""The same for a tokenizer: 500,000 merges may be lists. Each takes about a hundred bytes."""
MAX_DEPTH = 100

_MAX_DIGITS = 300
"""Longer whole numbers exceed float range, or the length that Python converts."""
_BAD_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def read_json(path: Path, *, is_vocabulary: bool = False) -> dict[str, object]:
    """Return the object in the JSON file at `path`. NaN and infinities are errors.

    Args:
        path: of the file.
        is_vocabulary: it may have millions of values, and strings with null characters, which are tokens.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not an object.
    """
    advice = "Download the checkpoint again or give the folder that contains it."
    data = read_input(path, max_bytes=MAX_JSON_BYTES, advice=advice)
    return parse_json_object(data, str(path), is_vocabulary=is_vocabulary)


def parse_json_object(
    text: str | bytes, source: str, *, is_vocabulary: bool = False, max_containers: int = MAX_CONTAINERS
) -> dict[str, object]:
    """Return the JSON object in `text` (UTF-8 or UTF-16, with or without a byte order mark).

    Args:
        text: the JSON.
        source: names it in errors.
        is_vocabulary: it may have millions of values, and strings with null characters, which are tokens.
        max_containers: most objects and lists in it.

    Raises:
        CheckpointError: not JSON (NaN and infinities included), ambiguous, too large, or not an object.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        text = text.removeprefix("\ufeff")
        if not text.strip(" \t\r\n\0"):
            raise ValueError("it is filled with zeros" if text.strip() else "it is empty")
        containers = text.count("{") + text.count("[")
        most = (MAX_VOCABULARY_CONTAINERS, MAX_VOCABULARY_VALUES) if is_vocabulary else (max_containers, MAX_VALUES)
        if containers > most[0] or text.count(",") > most[1]:
            raise CheckpointError(f"{source} has too many values for a checkpoint. Check where it is from.")
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
            object_pairs_hook=_unique_keys,
        )
        bad_escape = _BAD_ESCAPE.search(text) is not None
        if containers > MAX_DEPTH or bad_escape:
            _check_values(value, may_hold_null=is_vocabulary)
    except RecursionError:
        raise CheckpointError(f"{source} nests too deeply to be a config.") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source} is not valid JSON: byte {error.start} is not {error.encoding} text.") from None
    except ValueError as error:  # JSONDecodeError, and our own
        raise CheckpointError(f"{source} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds a JSON {type(value).__name__}; expected an object.")
    return cast(dict[str, object], value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:50]} is beyond the range of floating-point numbers")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return values


def _check_values(value: object, *, may_hold_null: bool) -> None:
    """Raise unless all strings are valid Unicode without null characters, and nesting is at most `MAX_DEPTH`."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += cast(list[object], item)
            elif isinstance(item, str) and ("\0" in item or not item.isascii()):
                _check_string(item, may_hold_null=may_hold_null)
        if not inner:
            return
        level = inner
    raise RecursionError


def _check_string(text: str, *, may_hold_null: bool) -> None:
    if "\0" in text and not may_hold_null:
        raise ValueError(f"the string {shown(text)} contains a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the string {shown(text)} contains half of a surrogate pair") from None


@dataclass(frozen=True)
class Section:
    """A JSON object with typed look-ups. An absent or null key counts as missing.

    Look-ups raise `CheckpointError` if the value has the wrong type, or if it is missing and there is no default.
    """

    values: dict[str, object]
    source: str

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int | None = 1) -> int:
        """A whole number, at least `minimum` (None: no limit)."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "a whole number")
        if minimum is not None and value < minimum:
            self._wrong(key, value, f"at least {minimum}")
        return value

    def number(self, key: str, default: float | None = None, *, minimum: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            self._wrong(key, value, "a finite number")
        if minimum is not None and value < minimum:
            self._wrong(key, value, f"at least {minimum}")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "a string")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        value = self.string(key, default)
        if value not in choices:
            self._wrong(key, value, f"one of {', '.join(choices)}")
        return value

    def section(self, key: str) -> "Section":
        """The object at `key`."""
        value = self._value(key, None)
        if not isinstance(value, dict):
            self._wrong(key, value, "an object")
        return Section(cast(dict[str, object], value), f"{self.source}: {key}")

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` finite numbers."""
        value = self._value(key, None)
        if not isinstance(value, list):
            self._wrong(key, value, f"a list of {length} numbers")
        items = cast(list[object], value)
        parsed = [Section({key: item}, self.source).number(key) for item in items]
        if len(parsed) != length:
            self._wrong(key, value, f"a list of {length} numbers")
        return tuple(parsed)

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.source} has no '{key}', which is required.")
        return default

    def _wrong(self, key: str, value: object, expected: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: '{key}' is {shown(value)}; expected {expected}.")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float range
        return False


def read_section(path: Path) -> Section:
    """Return the JSON file at `path` with typed look-ups. Raises `CheckpointError` as `read_json` does."""
    return Section(read_json(path), str(path))
