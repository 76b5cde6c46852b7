"""Evaluation for VILA Kit: benchmarks as plugins, and numbers that can be trusted.

Names are imported on first use: `vila --help` imports this package to find its plugin.
"""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_eval.data.sources import DataOptions, HubDataset, LocalFiles
    from vila_eval.metric import (
        Answered,
        JudgedMetric,
        JudgeRequest,
        MeanMetric,
        Measure,
        Metric,
        Score,
        Scored,
        Submission,
        mean_measures,
    )
    from vila_eval.metrics.judged import JudgeMetric
    from vila_eval.task import Question, Row, Task

__version__ = "0.1.0"

__all__ = [
    "Answered",
    "DataOptions",
    "HubDataset",
    "JudgeMetric",
    "JudgeRequest",
    "JudgedMetric",
    "LocalFiles",
    "MeanMetric",
    "Measure",
    "Metric",
    "Question",
    "Row",
    "Score",
    "Scored",
    "Submission",
    "Task",
    "mean_measures",
]

_HOME = {
    **dict.fromkeys(("DataOptions", "HubDataset", "LocalFiles"), "data.sources"),
    "JudgeMetric": "metrics.judged",
    **dict.fromkeys(("Question", "Row", "Task"), "task"),
}

__getattr__ = lazy_attributes("vila_eval", {name: _HOME.get(name, "metric") for name in __all__})


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
