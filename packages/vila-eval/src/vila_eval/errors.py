"""Errors of an evaluation that a user can fix."""

from vila_core.errors import VilaError


class DataError(VilaError):
    """A dataset is missing, unreadable, or lacks columns that its task expects."""


class ResultsError(VilaError):
    """A results folder belongs to another model, task or data, or cannot be read or written."""


class JudgeError(VilaError):
    """A judge is not configured or does not answer."""


class WorkerError(VilaError):
    """A worker process died or could not be started."""
