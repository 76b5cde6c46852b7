"""Formatting of numbers: shares in percent, points unchanged, each with its 95 % interval."""

from __future__ import annotations

from typing import Any, cast

from vila_eval.metric import Measure, Unit
from vila_eval.records.schema import RunSettings


def words(name: str) -> str:
    """Return the name of a measure as words: "yes ratio" for "yes_ratio"."""
    return name.replace("_", " ")


def format_value(value: float, unit: Unit) -> str:
    """Return "71.3" for the share 0.713; points have two decimals, or one from 100 on. There is no percent sign."""
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def format_interval(interval: tuple[float, float] | None, unit: Unit) -> str:
    """Return "68.9–73.6", with decimals as in `format_value`, or an empty text if the interval is unknown."""
    if interval is None:
        return ""
    low, high = (format_value(end, unit).replace("-", "−") for end in interval)
    return f"{low}–{high}"


def format_error(standard_error: float | None, unit: Unit) -> str:
    """Return "± 1.2" with decimals as in `format_value`; an empty text if all values are equal or it is unknown."""
    return f"± {format_value(standard_error, unit)}" if standard_error else ""


def format_difference(difference: float, unit: Unit) -> str:
    """Return a difference with its sign, "+1.2" or "−0.8"."""
    written = format_value(abs(difference), unit)
    return written if difference == 0 else f"{'+' if difference > 0 else '−'}{written}"


def format_measure(measure: Measure) -> str:
    """Return "71.3 (68.9–73.6)", or "71.3" without an interval."""
    value, interval = format_value(measure.value, measure.unit), format_interval(measure.interval, measure.unit)
    return f"{value} ({interval})" if interval else value


def format_p_value(p_value: float | None) -> str:
    """Return "0.032", "< 0.001", or "–" if there was no test."""
    return "–" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_reference(reference: Any) -> str:
    """Return a reference of any form as one text.

    Equal texts (ten annotators' answers) appear once, with their count.
    """
    if reference is None:
        return ""
    if isinstance(reference, list) and all(isinstance(item, str) for item in cast("list[object]", reference)):
        answers = cast("list[str]", reference)
        counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
        return " | ".join(answer if count == 1 else f"{answer} ({count}×)" for answer, count in counts.items())
    if isinstance(reference, str):
        return reference
    import json

    return json.dumps(reference, ensure_ascii=False)


def format_settings(settings: RunSettings) -> dict[str, str]:
    """Return the settings that were given, with their names as words."""
    given: dict[str, object] = {
        "max new tokens": settings.max_new_tokens,
        "stop": None if not settings.stop else " ".join(repr(text) for text in settings.stop),
        "video frames": settings.num_video_frames,
        "max tiles": settings.max_tiles,
        "chat template": settings.chat_template,
        "dtype": None if settings.dtype == "auto" else settings.dtype,
        "limit": settings.limit,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def shorten(text: str, most: int) -> str:
    """Return a text of at most `most` characters, and say how many were left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"
