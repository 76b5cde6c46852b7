"""Chat messages with media among their texts: those of OpenAI, transformers, TRL, ms-swift and LLaMA-Factory.

{"messages": [{"role": "user", "content": [{"type": "image", "image": "1.jpg"}, {"type": "text", "text": "What?"}]},
              {"role": "assistant", "content": "A cat."}]}

A part of type image or video without its own source stands for the next of `images` or `videos` beside the messages
(TRL), or for the one that its `index` names; in a text, `<image>` and `<video>` do so (ms-swift, LLaMA-Factory).
Media stay where they are.

Sources: platform.openai.com/docs/guides/fine-tuning (chat format); huggingface.co/docs/trl/dataset_formats
(conversational, vision); swift.readthedocs.io (Custom Dataset).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vila_core.chat import Message
from vila_core.content_parts import IMAGES, SOURCE_KEYS, TEXTS, VIDEOS, as_content_part
from vila_core.errors import MediaError, PromptError, shown
from vila_core.media import Image, Video
from vila_train.data.conversations import SampleError, as_message
from vila_train.data.formats.llava import videos_of
from vila_train.data.media_files import MediaFolder
from vila_train.data.placement import Parts, TextTurn, place_media
from vila_train.data.stated_turns import StatedTurn, read_turns, require_none
from vila_train.data.turns import check_turns

_KINDS = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys(VIDEOS, "video")}
_OWN_KEYS = ("type", *TEXTS[:1], *IMAGES, *VIDEOS, *SOURCE_KEYS, "frames", "nframes", "num_frames", "fps", "media_type")
_UNSUPPORTED_IN_PARTS: Mapping[str, str] = {
    "train": "only whole answers can be left out",
    "weight": "only whole answers can be left out",
}
_UNSUPPORTED_IN_SAMPLES = {"objects": "write boxes into the texts"}


@dataclass(frozen=True)
class ChatReader:
    """Reads chat messages.

    Attributes:
        media: where images and videos lie.
    """

    media: MediaFolder

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        images = [*self.media.images(record.get("images")), *self.media.images(record.get("image"))]
        videos = videos_of(record, self.media)
        turns = [(turn, _content(turn.fields)) for turn in _turns(record)]
        if all(isinstance(content, str) for _, content in turns):
            texts = [TextTurn(turn.role, cast("str", content), turn.learned) for turn, content in turns]
            return check_turns(place_media(texts, images, videos, "in_place"))
        beside = {"image": _Beside("image", images), "video": _Beside("video", videos)}
        messages = [
            as_message(turn.role, [content] if isinstance(content, str) else self._parts(content, beside), turn.learned)
            for turn, content in turns
        ]
        for media in beside.values():
            media.require_all_used()
        return check_turns(messages)

    def _parts(self, content: Sequence[object], beside: Mapping[str, "_Beside"]) -> Parts:
        parts: Parts = []
        for part in content:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping):
                parts.append(self._part(cast("Mapping[str, object]", part), beside))
            else:
                raise SampleError(f"a part of a message is {shown(part)}; expected an object.", "message is not a text")
        return parts

    def _part(self, part: Mapping[str, object], beside: Mapping[str, "_Beside"]) -> str | Image | Video:
        # Tables give every part all keys, so absent ones are null.
        given = {key: value for key, value in part.items() if value is not None}
        require_none(given, _UNSUPPORTED_IN_PARTS, "a part of a message")
        kind = _KINDS.get(str(given.get("type")))
        if kind is not None and not any(key in given for key in (*IMAGES, *VIDEOS, *SOURCE_KEYS)):
            return beside[kind].take(given.get("index"))
        for key in (*IMAGES, *VIDEOS):
            source = given.get(key)
            if isinstance(source, Mapping) and source.keys() & {"bytes"}:  # a picture in a table
                return self.media.images(source)[0] if key in IMAGES else self.media.videos(source)[0]
        try:
            made = as_content_part({key: value for key, value in given.items() if key in _OWN_KEYS})
        except (PromptError, MediaError) as error:
            raise SampleError(str(error), "damaged message part") from None
        return made if isinstance(made, str) else self.media.within(made)


def _turns(record: Mapping[str, object]) -> list[StatedTurn]:
    require_none(record, _UNSUPPORTED_IN_SAMPLES, "the sample")
    if record.get("label") is False:
        raise SampleError("'label' is false: its answer is a bad example.", "bad example")
    return read_turns(record, "messages", "role", "content")


def _content(turn: Mapping[str, object]) -> str | Sequence[object]:
    content = turn.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise SampleError(f"'content' of a message is {shown(content)}; expected a text or a list of parts.",
                          "message is not a text")  # fmt: skip
    return cast("list[object]", content)


class _Beside:
    """The media beside the messages, which parts without a source stand for."""

    def __init__(self, kind: str, media: Sequence[Image] | Sequence[Video]):
        self.kind, self.media = kind, media
        self._next = 0
        self._used: set[int] = set()

    def take(self, index: object) -> Image | Video:
        if isinstance(index, int) and not isinstance(index, bool):
            place = index
        else:
            place, self._next = self._next, self._next + 1
        if not 0 <= place < len(self.media):
            raise SampleError(
                f"its messages have more {self.kind}s than the {len(self.media)} in '{self.kind}s'.",
                "more placeholders than media",
            )
        self._used.add(place)
        return self.media[place]

    def require_all_used(self) -> None:
        if len(self._used) < len(self.media):
            raise SampleError(
                f"'{self.kind}s' has {len(self.media)} media, but its messages use {len(self._used)}.",
                "more media than placeholders",
            )
