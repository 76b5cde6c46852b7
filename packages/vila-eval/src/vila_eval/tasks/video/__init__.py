"""Questions about videos."""

from vila_eval.task import Task

VIDEO_TASKS: tuple[Task, ...] = ()
