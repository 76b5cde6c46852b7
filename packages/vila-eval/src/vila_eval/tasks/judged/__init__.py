"""Open answers that a judge scores."""

from vila_eval.task import Task

JUDGED_TASKS: tuple[Task, ...] = ()
