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
from vila_train.data.stated_turns import turns_in
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


@dataclass(frozen=True)
class TextsReader:
    """Reads several questions about the same images: `{"texts": [{"user": …, "assistant": …}], "images": […]}`.

    Source: huggingface.co/datasets/HuggingFaceM4/the_cauldron and FineVision; llava/data/hf_parquet.py of NVlabs/VILA.

    Attributes:
        media: where images lie that are not embedded.
    """

    media: MediaFolder

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        turns = [
            turn
            for pair in turns_in(record, "texts")
            for turn in (TextTurn("user", text_of(pair, "user")), TextTurn("assistant", text_of(pair, "assistant")))
        ]
        images = [*self.media.images(record.get("images")), *self.media.images(record.get("image"))]
        return check_turns(place_media(turns, images, (), "auto"))
