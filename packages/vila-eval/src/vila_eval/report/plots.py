"""Bars with error bars as inline SVG. Lengths are in percent, so that a plot fills its cell and text stays HTML."""

from __future__ import annotations

import math

from markupsafe import Markup

STEPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def axis_end(largest: float) -> float:
    """Return the round number at which an axis that must hold `largest` ends, such as 200 for 160."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in STEPS if step * power >= largest * (1 - 1e-9))


def draw_bar(value: float, interval: tuple[float, float] | None, end: float) -> Markup:
    """Return a bar from 0 to `value`, with a line over its 95 % interval, and quarter lines.

    The axis ends at `end`.

    Anything beyond the axis is cut off. The plot has no labels: print the number beside it.
    """
    grid = "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="22"/>' for x in (0, 25, 50, 75, 100))
    bar = f'<rect class="bar" x="0" y="5" width="{_percent(value, end)}%" height="12" rx="2"/>'
    return _svg(grid + bar + _whisker(interval, end))


def draw_difference(difference: float, standard_error: float | None, end: float, is_better: bool | None) -> Markup:
    """Return a bar from the middle (no difference) to either side, colored by which is better.

    The axis reaches from -`end` to `end`.
    """
    middle, tip = 50.0, _percent(difference + end, 2 * end)
    color = "bar" if is_better is None else "gain" if is_better else "loss"
    left, width = min(middle, tip), round(abs(tip - middle), 2)
    bar = f'<rect class="{color}" x="{left}%" y="5" width="{width}%" height="12" rx="2"/>'
    grid = "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="22"/>' for x in (0, 50, 100))
    error = standard_error or 0.0
    span = (difference + end - error, difference + end + error) if error else None
    return _svg(grid + bar + _whisker(span, 2 * end))


def _whisker(span: tuple[float, float] | None, end: float) -> str:
    if span is None:
        return ""
    left, right = (_percent(place, end) for place in span)
    return f'<line class="error" x1="{left}%" x2="{right}%" y1="11" y2="11"/>' + "".join(
        f'<line class="error" x1="{x}%" x2="{x}%" y1="7" y2="15"/>' for x in (left, right)
    )


def _svg(shapes: str) -> Markup:
    return Markup(f'<svg class="plot" height="22" aria-hidden="true">{shapes}</svg>')


def _percent(value: float, end: float) -> float:
    return round(100 * min(1.0, max(0.0, value / end)), 2)
