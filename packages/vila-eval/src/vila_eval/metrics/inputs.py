"""Checks of the inputs of metrics."""

from typing import cast

from vila_core.errors import ConfigError


def require_text(value: object, name: str) -> str:
    """Return `value` if it is a string. Raises: ConfigError with `name` and the value."""
    if not isinstance(value, str):
        raise ConfigError(f"Got {value!r} ({type(value).__name__}) as the {name}. Expected text (str).")
    return value


def require_answers(value: object) -> list[str]:
    """Return the expected answers, given as one text or as a non-empty list or tuple of texts. Raises: ConfigError."""
    texts = list(cast("list[object]", value)) if isinstance(value, list | tuple) else [value]
    if not texts:
        raise ConfigError("Got no expected answer. Expected at least one; check the answer column.")
    return [require_text(text, "expected answer") for text in texts]


def require_options(options: object) -> list[str]:
    """Return `options` if it is a list or tuple of 1 to 26 texts, named by the letters A to Z. Raises: ConfigError."""
    if not isinstance(options, list | tuple):
        raise ConfigError(f"Got {options!r} as the options. Expected a list of texts, first option first.")
    texts = [require_text(text, "option's text") for text in cast("list[object]", options)]
    if not 1 <= len(texts) <= 26:
        raise ConfigError(f"Got {len(texts)} options. Expected 1 to 26, which the letters A to Z can name.")
    return texts
