"""One calibration sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_core.conversation import Part
from vila_core.media import Image


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer, if known.

    Attributes:
        prompt: text and media in order.
        answer: as text.
        is_text: whether the prompt is plain text, which gets no chat template.
        drawing: the image that a model draws for the prompt, which is then a single text; None for other samples.
    """

    prompt: Sequence[Part]
    answer: str | None = None
    is_text: bool = False
    drawing: Image | None = None
