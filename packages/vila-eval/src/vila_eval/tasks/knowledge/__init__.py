"""Exams and reasoning about pictures."""

from vila_eval.task import Task

KNOWLEDGE_TASKS: tuple[Task, ...] = ()
