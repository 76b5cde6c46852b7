"""Evaluation for VILA Kit: benchmarks as plugins, and numbers that can be trusted."""

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
