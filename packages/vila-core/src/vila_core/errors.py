"""Errors that a user can cause and fix. Each message says what was got, what was expected, and what to do.

Command-line programs print the message without a traceback and exit with code 2 (`--debug` shows the traceback).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

    from vila_core.engine.completion import Completion


class VilaError(Exception):
    """Base class of errors that a user can fix."""


class ConfigError(VilaError):
    """A configuration value is unknown, contradictory or out of range."""


class CheckpointError(VilaError):
    """A checkpoint folder or file is missing, damaged, unsafe or does not fit its config."""


class OutputError(VilaError):
    """A file or folder cannot be written: the disk is full, read-only, or the path is impossible."""


class MediaError(VilaError):
    """An image or video cannot be read, or exceeds a limit."""


class PromptError(VilaError):
    """A prompt is empty, too long, or its parts do not fit together."""


class GenerationError(VilaError):
    """Generation settings are out of range, a schema cannot be followed, or the model produces NaN or infinity."""


class BatchGenerationError(GenerationError):
    """Some prompts of a batch failed; the answers to the others are kept.

    Attributes:
        outcomes: for each prompt, in order, its completion or its error.
    """

    def __init__(self, outcomes: Sequence[Completion | GenerationError]):
        self.outcomes = tuple(outcomes)
        first = outcomes.index(self.errors[0])
        super().__init__(
            f"{len(self.errors)} of {len(outcomes)} prompts failed; the first is prompt {first + 1}: {self.errors[0]} "
            "The error's `outcomes` hold the other answers."
        )

    @property
    def errors(self) -> list[GenerationError]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, GenerationError)]


class PluginError(VilaError):
    """A plugin fails to load, or two plugins register the same name."""


class MissingDependencyError(VilaError):
    """An optional package is not installed; the message includes the command that installs it."""

    def __init__(self, package: str, needed_for: str, extra: str):
        super().__init__(f"{needed_for} needs '{package}', which is not installed. Run: pip install '{extra}'")


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, with the known ones and the closest match."""
    known = sorted(known)
    nearest = difflib.get_close_matches(got, known, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"Unknown {kind} '{got}'. Known: {', '.join(known) or 'none'}.{hint}"


@dataclass(frozen=True)
class ValidationProblem:
    """One invalid value in a config or record.

    Attributes:
        path: keys that lead to the value, joined by dots; "" if the object as a whole is invalid.
        message: what is wrong with the value.
        value: what was got.
        kind: pydantic's name for the problem, such as "extra_forbidden".
    """

    path: str
    message: str
    value: object
    kind: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    @property
    def with_value(self) -> str:
        """The problem and the value that was got; for an object as a whole, the problem alone."""
        return f"{self} (got {self.value!r})" if self.path else self.message


def validation_problems(error: ValidationError) -> list[ValidationProblem]:
    """Return the problems that pydantic found, at least one."""
    return [
        ValidationProblem(".".join(map(str, problem["loc"])), problem["msg"], problem["input"], problem["type"])
        for problem in error.errors()
    ]


def first_problem(error: ValidationError) -> ValidationProblem:
    """Return the first problem that pydantic found: `str()` of it is "key: message"."""
    return validation_problems(error)[0]
