"""JSON that every reader accepts. Python would write NaN and infinities as words that are not JSON (RFC 8259)."""

import json
import math
from collections.abc import Mapping
from typing import cast

NOT_FINITE = "not_finite"
"""The key that names the numbers that were not finite."""


def to_strict_json(values: Mapping[str, object], *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Return an object as JSON. NaN and infinities become null, and the key `not_finite` says what they were.

    For example, {"scores": {"loss": nan}} is {"scores": {"loss": null}, "not_finite": {"scores.loss": "nan"}}.

    Args:
        values: of types that `json.dumps` takes.
        indent: as for `json.dumps`.
        ensure_ascii: as for `json.dumps`.
    """
    not_finite: dict[str, str] = {}
    plain = cast("dict[str, object]", _without(values, "", not_finite))
    if not_finite:
        plain[NOT_FINITE] = not_finite
    return json.dumps(plain, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _without(value: object, path: str, not_finite: dict[str, str]) -> object:
    """Return `value` with null for numbers that are not finite, which are added to `not_finite` by path."""
    if isinstance(value, float) and not math.isfinite(value):
        not_finite[path] = str(float(value))
        return None
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value).items()
        return {key: _without(item, f"{path}.{key}" if path else f"{key}", not_finite) for key, item in entries}
    if isinstance(value, list | tuple):
        items = cast("list[object]", value)
        return [_without(item, f"{path}.{index}", not_finite) for index, item in enumerate(items)]
    return value
