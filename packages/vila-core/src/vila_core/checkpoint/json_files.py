"""JSON files of a checkpoint: strict reading and typed look-ups. Every error names the file and the key."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from vila_core.errors import CheckpointError

MAX_JSON_BYTES = 256 * 1024 * 1024
"""More than any real config, index or safetensors header (100 MB)."""


def read_json(path: Path) -> dict[str, object]:
    """Return the object in the JSON file at `path`. NaN and infinities are errors.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} has {size} bytes, too many for a JSON config. Download the checkpoint again."
            )
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing. Download the checkpoint again or give the folder that contains it."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    return parse_json_object(text, str(path))


def parse_json_object(text: str | bytes, source: str) -> dict[str, object]:
    """Return the JSON object in `text`; `source` names it in errors.

    Raises:
        CheckpointError: not JSON (NaN and infinities included), or not an object.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise CheckpointError(f"{source} nests too deeply to be a config.") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and our own
        raise CheckpointError(f"{source} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds a JSON {type(value).__name__}; expected an object.")
    return cast(dict[str, object], value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


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
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
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
        shown = repr(value)
        raise CheckpointError(f"{self.source}: '{key}' is {shown[:100]}; expected {expected}.")


def read_section(path: Path) -> Section:
    """Return the JSON file at `path` with typed look-ups. Raises `CheckpointError` as `read_json` does."""
    return Section(read_json(path), str(path))
