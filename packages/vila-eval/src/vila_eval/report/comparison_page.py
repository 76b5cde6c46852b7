"""The comparison of two runs as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from vila_eval.records.storage import write_whole
from vila_eval.report.comparison import Flip, MeasureComparison, RunComparison, TaskComparison
from vila_eval.report.html import render
from vila_eval.report.pictures import picture_uri
from vila_eval.report.plots import axis_end, draw_difference

FLIPS = 50
"""Number of samples listed per task."""


def write_comparison(comparison: RunComparison, path: Path) -> Path:
    """Write the comparison to `path` and return it. The same comparison gives the same bytes."""
    headlines = [
        task.headline for task in comparison.tasks if task.headline is not None and task.headline.unit == "share"
    ]
    end = axis_end(
        max((abs(headline.difference) + (headline.standard_error or 0.0) for headline in headlines), default=0.0)
    )

    def draw(measure: MeasureComparison) -> Markup:
        is_better = None if measure.higher_is_better is None else (measure.difference > 0) == measure.higher_is_better
        return draw_difference(measure.difference, measure.standard_error, end, is_better)

    def picture(task: TaskComparison, flip: Flip) -> str | None:
        return next((found for folder in task.folders if (found := picture_uri(folder, flip.id)) is not None), None)

    anchors = {task.task: f"task-{number}" for number, task in enumerate(comparison.tasks, 1)}
    write_whole(
        path,
        render(
            "comparison.html", comparison=comparison, anchors=anchors, draw=draw, picture=picture, end=end, most=FLIPS
        ),
    )
    return path
