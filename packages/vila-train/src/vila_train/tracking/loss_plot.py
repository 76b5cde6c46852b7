"""OUT/loss.svg: the loss of every step, and the scores of evaluations, as a picture without dependencies."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vila_core.new_file import write_file
from vila_train.callbacks import NoCallback, RunStart
from vila_train.step_log import read_lines
from vila_train.tracking.log import EVALUATION, LOG

PLOT = "loss.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 320, 60, 16, 34, 44
MAX_POINTS = 1000
"""Points of a line; of longer runs, means of neighboring steps are drawn."""
COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d")

Point = tuple[float, float]


class LossPlot(NoCallback):
    """Draws the log when a run ends, complete or not."""

    def __init__(self) -> None:
        self._start: RunStart | None = None

    def on_start(self, start: RunStart) -> None:
        self._start = start

    def on_end(self, step: int, reason: str) -> None:
        if self._start is not None:
            draw_run(self._start.folder, self._start.config.name)


def draw_run(folder: Path, title: str) -> Path | None:
    """Draw the logs of a run and return the picture's path; None if there is no step yet. Raises `OutputError`."""
    losses = [
        (float(record["step"]), float(record["loss"]))
        for record in read_lines(folder / LOG)
        if isinstance(record.get("loss"), int | float) and math.isfinite(record["loss"])
    ]
    if not losses:
        return None
    points = thin(losses)
    # A smooth line helps where there are many steps; with few it only hides them.
    lines = [Line("loss", points, faint=len(points) > 40)]
    if lines[0].faint:
        lines.append(Line("smoothed", smooth(points)))
    panels = [Panel(f"{title}: training loss", "mean over labelled tokens", lines)]
    if scores := _scores(folder):
        panels.append(Panel("Evaluation", "score", [Line(name, points) for name, points in scores.items()]))
    path = folder / PLOT
    write_file(path, draw(panels))
    return path


def _scores(folder: Path) -> Mapping[str, Sequence[Point]]:
    found: dict[str, list[Point]] = {}
    for record in read_lines(folder / EVALUATION):
        for name, value in record.get("scores", {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((record["step"], value))
    return dict(list(found.items())[: len(COLORS)])


@dataclass(frozen=True)
class Line:
    """A line of a plot, with its name in the legend."""

    name: str
    points: Sequence[Point]
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over the same axes. Steps run along the horizontal one."""

    title: str
    unit: str
    lines: Sequence[Line]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return at most `limit` points: the means of neighbors."""
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Return the running mean over `share` of the points, without looking ahead."""
    size = max(round(len(points) * share), 1)
    smoothed: list[Point] = []
    for index, (x, _) in enumerate(points):
        window = points[max(index - size + 1, 0) : index + 1]
        smoothed.append((x, sum(y for _, y in window) / len(window)))
    return smoothed


def draw(panels: Sequence[Panel]) -> str:
    """Return the panels side by side as SVG."""
    width = WIDTH * len(panels)
    drawn = "".join(
        f'<g transform="translate({WIDTH * number} 0)">{_panel(panel)}</g>' for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12"><rect width="{width}" height="{HEIGHT}" fill="white"/>'
        f"{drawn}</svg>\n"
    )


def _panel(panel: Panel) -> str:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    x_axis, y_axis = Axis.over(xs, LEFT, WIDTH - RIGHT), Axis.over([0.0, *ys], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{html.escape(panel.title)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="#555">step</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="#555">{html.escape(panel.unit)}</text>',
    ]
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{tick:g}</text>')
    for tick in x_axis.ticks():
        if tick == int(tick):
            x = x_axis.place(tick)
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="#555">{tick:g}</text>'
            )
    for number, line in enumerate(panel.lines):
        color = COLORS[0] if line.name == "smoothed" else COLORS[number % len(COLORS)]
        parts.append(_line(line, color, x_axis, y_axis))
        if len(panel.lines) > 1:
            place = f'x="{WIDTH - RIGHT - 4}" y="{TOP + 12 + 16 * number}" text-anchor="end"'
            opacity = ' opacity="0.4"' if line.faint else ""
            parts.append(f'<text {place} fill="{color}"{opacity}>{html.escape(line.name)}</text>')
    return "".join(parts)


def _line(line: Line, color: str, x_axis: "Axis", y_axis: "Axis") -> str:
    places = [f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in line.points]
    opacity = ' opacity="0.3"' if line.faint else ""
    if len(places) == 1:
        x, y = places[0].split(",")
        return f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"{opacity}/>'
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{color}" stroke-width="1.6"{opacity}/>'


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from the places `start` to `end` in pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        """Return an axis that holds all values."""
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1, start, end)

    def place(self, value: float) -> float:
        """Return where a value is, in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Return about `count` round numbers."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
