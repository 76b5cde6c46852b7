"""One calibration sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_core.conversation import Part


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer, if known. With `is_text`, plain text that gets no chat template."""

    prompt: Sequence[Part]
    answer: str | None = None
    is_text: bool = False
