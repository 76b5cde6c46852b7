"""Errors that a user can cause and fix. Each message says what was got, what was expected, and what to do.

Command-line programs print the message without a traceback and exit with code 2 (`--debug` shows the traceback).
"""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pydantic import ValidationError

    from vila_core.engine.completion import Completion


MAX_MESSAGE = 1000
"""Most characters of a message; what is cut is in the middle, since the advice stands at the end."""


class VilaError(Exception):
    """Base class of errors that a user can fix. As a string it is one printable line."""

    details: str = ""
    """More lines, such as a complete list of names; printed with `--debug` only."""

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE // 2]} … {text[3 - MAX_MESSAGE // 2 :]}"

    def with_details(self, lines: Iterable[str]) -> Self:
        """Set `details` to `lines`, and return the error."""
        self.details = "\n".join(printable(line) for line in lines)
        return self

    def _render_traceback_(self) -> list[str]:
        """Return what IPython and Jupyter show: the user's own lines and the message, not the frames in between.

        The complete traceback is in `error.__traceback__`, and `%debug` enters it as usual.
        """
        import traceback  # slow to import, and needed in a notebook only

        own = [frame for frame in traceback.extract_tb(self.__traceback__) if _is_users(frame.filename)]
        places = [f"{_cell(frame.filename)}, line {frame.lineno}: {frame.line}" for frame in own]
        name = type(self).__name__
        return [f"{name:<40}(%debug shows all frames)", *places, f"\n{name}: {self}"]


class VilaWarning(UserWarning):
    """Something that works, but is probably not what the user meant."""


def warn(message: str) -> None:
    """Warn at the line of the user's code that called into this package."""
    frame, level = sys._getframe(1), 2  # pyright: ignore[reportPrivateUsage] - the only way to a caller's line
    while frame.f_back is not None and not _is_users(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), VilaWarning, stacklevel=level)


def _is_users(filename: str) -> bool:
    """Return whether a frame in this file belongs to the user: not to this package, a library or IPython itself."""
    in_package = filename.startswith(str(Path(__file__).parent))
    return not in_package and "site-packages" not in filename and not filename.startswith(("<frozen", sys.base_prefix))


def _cell(filename: str) -> str:
    """Return a file's name as people know it: a temporary file of ipykernel is a cell."""
    return "Cell" if "ipykernel_" in filename or filename.startswith("<ipython") else filename


class ConfigError(VilaError):
    """A configuration value is unknown, contradictory or out of range."""


class CheckpointError(VilaError):
    """A checkpoint folder or file is missing, damaged, unsafe or does not fit its config."""


class OutputError(VilaError):
    """A file or folder cannot be written: the disk is full, read-only, or the path is impossible."""


class MediaError(VilaError):
    """An image or video cannot be read, or exceeds a limit."""


class MediaLimitError(MediaError):
    """An image or video exceeds a limit.

    Attributes:
        limit: the field of `MediaLimits` or `FetchPolicy`, or the name of a limit that cannot be changed.
    """

    def __init__(self, message: str, limit: str):
        super().__init__(message)
        self.limit = limit

    def __reduce__(self) -> tuple[type[MediaLimitError], tuple[str, str]]:
        return MediaLimitError, (str(self), self.limit)


class DataUriError(MediaError):
    """A `data:` URI is not of the form `data:<type>;base64,<text>`, or of another type than expected."""


class FetchError(MediaError):
    """A URL is refused, or cannot be fetched."""


class PromptError(VilaError):
    """A prompt is empty, too long, or its parts do not fit together."""


class PromptTooLongError(PromptError):
    """A prompt leaves no room for an answer in the context."""


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
        super().__init__(f"{needed_for} needs '{package}', which is not installed. Run: {install_command(extra)}")


def install_command(requirement: str) -> str:
    """Return the command that installs a distribution or extra, such as "vila-eval[wups]".

    Those of this project are installed from a clone; for the extra of an installed one, its name is enough.
    """
    from importlib import metadata  # slow to import

    name = requirement.partition("[")[0]
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        if name.startswith("vila-"):
            return f"python -m pip install -e 'packages/{requirement}' (in a clone of the repository)"
    return f"pip install '{requirement}'"


def printable(text: str) -> str:
    """Return `text` on one line and safe to print.

    Control characters, halves of surrogate pairs and marks that reorder text become escapes, line breaks spaces.
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], re.sub(r"\s*[\r\n]\s*", " ", text))


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def listed(names: Iterable[str], limit: int = 3) -> str:
    """Return `names` as text, cut after `limit`: "a, b, c and 214 more"."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def shown(value: object, limit: int = 100) -> str:
    """Return `value` as Python writes it, cut after `limit` characters. Huge values are not written out first."""
    if isinstance(value, str | bytes):
        text = repr(value[:limit])
        return f"{text}…" if len(value) > limit else text
    if isinstance(value, int) and abs(value) >= 10**limit:
        return f"a whole number of {value.bit_length():,} bits"
    try:
        text = reprlib.repr(value) if isinstance(value, list | dict | tuple | set) else repr(value)
    except Exception:  # noqa: BLE001 - an object of a plugin may fail to describe itself
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def unknown_name(kind: str, got: str, known: Iterable[str], instead: Mapping[str, str] | None = None) -> str:
    """Return the message for an unknown name, with the known ones and the closest match.

    Args:
        kind: of what, such as "generation setting".
        got: the unknown name.
        known: the names that exist.
        instead: what to write in place of names that other libraries use, as a sentence.
    """
    if instead is not None and got in instead:
        return f"Unknown {kind} '{got}'. {instead[got]}"
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
        if not self.path:
            return self.message
        is_predicate = self.message.startswith(("must ", "is "))
        return f"{self.path}{' ' if is_predicate else ': '}{self.message}"

    @property
    def with_value(self) -> str:
        """The problem and the value that was got; for an object as a whole, the problem alone."""
        if not self.path or self.kind == "missing":
            return str(self)
        return f"{self}, got {shown(self.value)}"


def validation_problems(error: ValidationError) -> list[ValidationProblem]:
    """Return the problems that pydantic found, at least one."""
    return [read_problem(problem) for problem in error.errors()]


def read_problem(problem: Mapping[str, Any]) -> ValidationProblem:
    """Return an entry of pydantic's list of errors as a `ValidationProblem`."""
    return ValidationProblem(
        ".".join(map(str, problem["loc"])),
        _in_plain_words(problem["type"], problem["msg"], problem.get("ctx", {})),
        problem["input"],
        problem["type"],
    )


_PLAIN_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "string_sub_type", "string_unicode"), "must be a text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "must be a JSON object"),
    **dict.fromkeys(("path_type", "bytes_type"), "must be a path"),
    "finite_number": "must be a finite number",
    "none_required": "must be null",
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "json_invalid": "must be JSON",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} or fewer characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
}
"""Names of pydantic's problems -> words for people. The names in braces are those of pydantic's context."""


def _in_plain_words(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _PLAIN_WORDS:
        return _PLAIN_WORDS[kind].format_map({name: _as_number(value) for name, value in context.items()})
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.replace("Input should be ", "must be ", 1)


def _as_number(value: object) -> object:
    """Return 0.0 as 0, which is how people write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class SettingError(ConfigError):
    """A setting that a user wrote in Python is unknown or has a wrong value; `problem` says which."""

    def __init__(self, kind: str, problem: ValidationProblem):
        super().__init__(f"{kind}: {problem.with_value}.")
        self.problem = problem


def first_problem(error: ValidationError) -> ValidationProblem:
    """Return the first problem that pydantic found: `str()` of it is "key: message"."""
    return validation_problems(error)[0]
