"""Errors a user can cause and mend. Each says what was got, what was expected, and what to do.

The command line prints the message, no traceback, and exits with code 2 (`--debug` shows the traceback).
"""

import difflib
from collections.abc import Iterable


class VilaError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(VilaError):
    """A configuration value is unknown, contradictory or out of range."""


class CheckpointError(VilaError):
    """A checkpoint folder or file is missing, damaged, unsafe or does not fit its config."""


class MediaError(VilaError):
    """An image or video cannot be read, or exceeds a limit."""


class PromptError(VilaError):
    """A prompt is empty, too long, or its parts do not fit together."""


class GenerationError(VilaError):
    """Generation settings are out of range, a schema cannot be followed, or the model gives no finite numbers."""


class PluginError(VilaError):
    """A plugin fails, or two plugins claim one name."""


class MissingDependencyError(VilaError):
    """An optional package is needed; the message holds the command that installs it."""

    def __init__(self, package: str, needed_for: str, extra: str):
        super().__init__(f"{needed_for} needs '{package}', which is not installed. Run: pip install '{extra}'")


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """Return the message for a name that no registry knows, with the nearest known one."""
    known = sorted(known)
    nearest = difflib.get_close_matches(got, known, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"Unknown {kind} '{got}'. Known: {', '.join(known) or 'none'}.{hint}"
