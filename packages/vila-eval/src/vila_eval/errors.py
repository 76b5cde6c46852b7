"""Errors of an evaluation that a user can mend."""

from vila_core.errors import VilaError


class DataError(VilaError):
    """A dataset is missing, cannot be read, or has other columns than its task expects."""


class ResultsError(VilaError):
    """A results folder is of another model, task or data, or cannot be written or read."""


class JudgeError(VilaError):
    """A judge is not configured or does not answer."""


class WorkerError(VilaError):
    """A process that answers has died, or could not be started."""
