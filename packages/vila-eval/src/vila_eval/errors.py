"""Errors of an evaluation that a user can fix."""

import traceback
from pathlib import Path

from vila_core.errors import VilaError
from vila_eval.texts import one_line


class DataError(VilaError):
    """A dataset is missing, unreadable, or lacks columns that its task expects."""


class ResultsError(VilaError):
    """A results folder belongs to another model, task or data, or cannot be read or written."""


class JudgeError(VilaError):
    """A judge is not configured or does not answer."""


class WorkerError(VilaError):
    """A worker process died or could not be started."""


def describe_exception(error: BaseException) -> str:
    """Return an exception as one line: a `VilaError`'s message, or type, message and place of any other."""
    if isinstance(error, VilaError):
        return one_line(str(error), 1000)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = one_line(str(error), 300)
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}."
