"""Texts from datasets, models and judges made fit for files, terminals and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

_SURROGATE = re.compile("[\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters other than tab and line feed, surrogates, and marks that reorder the text around them."""


def escape_surrogates(text: str) -> str:
    r"""Return a text that can be encoded: a lone surrogate (half an emoji) becomes its escape, such as `\ud83d`."""
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable(text: str) -> str:
    r"""Return a text that does nothing to a terminal or page: control characters become escapes such as `\x1b`.

    Tabs and line feeds stay, and a carriage return before a line feed is dropped.
    """
    return _UNPRINTABLE.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str, most: int = 600) -> str:
    """Return a text as one printable line of at most `most` characters, for messages."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def escape_all(value: object) -> object:
    """Return a JSON-like value with the lone surrogates in all of its texts escaped."""
    return _in_all_texts(value, escape_surrogates)


def printable_all(value: object) -> object:
    """Return a JSON-like value whose texts are all printable."""
    return _in_all_texts(value, printable)


def _in_all_texts(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {_in_all_texts(key, change): _in_all_texts(item, change) for key, item in items}
    if isinstance(value, list | tuple):
        changed = [_in_all_texts(item, change) for item in cast("Sequence[object]", value)]
        return changed if isinstance(value, list) else tuple(changed)
    return value
