"""Pieces of the parser that MMMU introduced and other benchmarks copied."""

from collections.abc import Mapping

from vila_eval.metrics.inputs import require_text


def strip_and_pad(answer: str) -> str:
    """Strip `, . ! ? ; : '` from both ends, each once and in this order, and put one space at both ends.

    "B,." keeps its comma, since commas are stripped before the full stop. White space is not stripped.
    """
    text = require_text(answer, "answer")
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


def last_found(text: str, forms: Mapping[str, str]) -> str | None:
    """Return the letter whose form in `forms` begins last in `text`, the first of equals, or None if there is none."""
    place_of = {letter: text.rfind(form) for letter, form in forms.items()}
    last = max(place_of, key=lambda letter: place_of[letter])
    return last if place_of[last] >= 0 else None


def last_bracketed(text: str, letters: str) -> str | None:
    """Return the letter that comes last as "(B)", or None."""
    return last_found(text, {letter: f"({letter})" for letter in letters})


def last_spaced(text: str, letters: str) -> str | None:
    """Return the letter that comes last as " B ", or None."""
    return last_found(text, {letter: f" {letter} " for letter in letters})
