"""A question and its answer per record.

{"question": "What is this?", "answer": "A cat.", "image": "1.jpg"}

The question may also be called "prompt", as in the files that calibrate vila-quant. Media go before the question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vila_core.chat import Message
from vila_train.data.formats.llava import videos_of
from vila_train.data.media_files import MediaFolder
from vila_train.data.placement import TextTurn, place_media
from vila_train.data.turns import check_turns, text_of

QUESTION_KEYS = ("question", "prompt")


@dataclass(frozen=True)
class QuestionReader:
    """Reads questions with answers.

    Attributes:
        media: where images and videos lie.
    """

    media: MediaFolder

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        key = next((key for key in QUESTION_KEYS if record.get(key) is not None), QUESTION_KEYS[0])
        turns = [TextTurn("user", text_of(record, key)), TextTurn("assistant", text_of(record, "answer"))]
        images = [*self.media.images(record.get("image")), *self.media.images(record.get("images"))]
        return check_turns(place_media(turns, images, videos_of(record, self.media), "auto"))
