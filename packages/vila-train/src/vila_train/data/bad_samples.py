"""Samples that cannot be used, which the run skips, counts and names: one rule for training, checks and scores."""

from dataclasses import dataclass

from vila_core.device_memory import is_out_of_memory
from vila_core.errors import MediaError, MissingDependencyError, PromptError
from vila_train.data.conversations import SampleError
from vila_train.errors import TrainingError


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used.

    Attributes:
        name: of the sample.
        reason: a few words to count by.
        message: what exactly is wrong.
    """

    name: str
    reason: str
    message: str


def as_skipped(error: Exception, name: str) -> Skipped:
    """Return why a sample cannot be used. Raise `error` itself if the sample is not to blame for it.

    Args:
        error: was raised while the sample was read or encoded. A plugin's reader may raise anything for a damaged one.
        name: of the sample, if the error does not say it.
    """
    own = error.sample if isinstance(error, SampleError) else ""
    if is_out_of_memory(error) or isinstance(error, MissingDependencyError):
        raise error
    if isinstance(error, TrainingError) and not isinstance(error, SampleError):
        raise error
    return Skipped(own or name, reason_of(error), str(error) or type(error).__name__)


def none_usable(count: int, message: str) -> TrainingError:
    """Return that none of the first `count` samples can be used; `message` says what is wrong with one."""
    which = "The only sample cannot be used" if count == 1 else f"None of the first {count:,} samples can be used"
    return TrainingError(f"{which}: {message}")


def reason_of(error: Exception) -> str:
    """Return what is wrong with a sample in a few words, the same for all samples with this fault."""
    if isinstance(error, SampleError):
        return error.reason
    if isinstance(error, MediaError):
        return "unreadable medium"
    return "does not fit the template" if isinstance(error, PromptError) else f"unexpected {type(error).__name__}"
