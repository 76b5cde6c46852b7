"""Pieces of the parser that MMMU introduced and other benchmarks copied."""

from collections.abc import Mapping, Sequence

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


def last_choice(answer: str, options: Sequence[str]) -> str | None:
    """Return the chosen letter by the first rule that finds one, after `strip_and_pad`:

    1. The letter that comes last as "(B)".
    2. A letter before a space, or else before a full stop, even inside a word. Of several, the one that comes last as
       " B ", or the first if none does.
    3. In an answer of more than five words, the option whose text comes last, ignoring case.
    """
    text = strip_and_pad(answer)
    letters = "".join(chr(ord("A") + index) for index in range(len(options)))
    if bracketed := last_bracketed(text, letters):
        return bracketed
    for mark in " .":
        if found := [letter for letter in letters if f"{letter}{mark}" in text]:
            return found[0] if len(found) == 1 else max(found, key=lambda letter: text.rfind(f" {letter} "))
    if len(text.split()) <= 5:
        return None
    return last_found(text.lower(), {letter: option.lower() for letter, option in zip(letters, options, strict=True)})
