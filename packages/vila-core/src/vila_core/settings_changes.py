"""Comparison of the settings of a run with those of an earlier run in the same folder."""

import json
from collections.abc import Iterator, Mapping
from typing import cast

_MAX_CHARACTERS = 60


def describe_changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return a text such as "model.seed was 0 and is 1" for each setting that differs, in the order of `now`.

    Settings are JSON values; a missing one counts as null. Objects are compared by their keys, joined by full stops.
    """
    flat_before, flat_now = dict(_flatten(before)), dict(_flatten(now))
    return [
        f"{name} was {_short(flat_before.get(name))} and is {_short(flat_now.get(name))}"
        for name in dict.fromkeys([*flat_now, *flat_before])
        if flat_before.get(name) != flat_now.get(name)
    ]


def _flatten(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(cast("Mapping[str, object]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
