"""Where the media of a sample stand among its texts.

The reference has two rules. `LLaVADataset` removes `<image>` and `<video>` from all messages and puts the media before
the text of the first one. `LLaVANextDataset` puts each image where its `<image>` stands. The first rule loses nothing
if all placeholders stand before or after the first question, as they do in LLaVA's data; else texts such as "<image> is
before, <image> is after" fall apart. So "auto" follows the first rule for such samples, and the second for the others.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vila_core.chat import Message, Role
from vila_core.media import Image, Video
from vila_train.data.conversations import SampleError, as_message

Placement = Literal["auto", "first", "in_place"]
"""Where media go: "first" before the first question, "in_place" where placeholders stand, "auto" as said above."""

Parts = list[str | Image | Video]

_PLACEHOLDER = re.compile("<image>|<video>|<vila/video>")
_AT_ENDS = re.compile(rf"\s*(?:(?:{_PLACEHOLDER.pattern})\s*)*(.*?)\s*(?:(?:{_PLACEHOLDER.pattern})\s*)*", re.DOTALL)


@dataclass(frozen=True)
class TextTurn:
    """A message with placeholders in place of media. `learned` is False for an answer that is context."""

    role: Role
    text: str
    learned: bool = True


def place_media(
    turns: Sequence[TextTurn], images: Sequence[Image], videos: Sequence[Video], placement: Placement
) -> list[Message]:
    """Return the messages with their media.

    If a sample has only images or only videos, either placeholder stands for them: many video sets write `<image>`.
    Without placeholders, media go before the first question.

    Raises:
        SampleError: the numbers of placeholders and media differ.
    """
    found = [token for turn in turns for token in _PLACEHOLDER.findall(turn.text)]
    _require_same_number(found, images, videos)
    if placement == "first" or not found or (placement == "auto" and _stand_at_the_ends(turns)):
        return _media_first(turns, [*images, *videos])
    left = {"image": iter(images), "video": iter(videos)}
    only = "video" if not images else "image" if not videos else None
    return [as_message(turn.role, _in_place(turn.text, left, only), turn.learned) for turn in turns]


def remove_placeholders(text: str) -> str:
    """Return a text without placeholders and the line break beside each, stripped (`_remove_media_tokens`)."""
    for token in ("<image>", "<video>", "<vila/video>"):
        text = text.replace(token + "\n", "").replace("\n" + token, "").replace(token, "")
    return text.strip()


def escape_placeholders(text: str) -> str:
    """Return a caption or a sentence of a document, where `<image>` is text. The reference writes it in capitals."""
    return _PLACEHOLDER.sub(lambda found: found[0].upper(), text)


def _require_same_number(found: Sequence[str], images: Sequence[Image], videos: Sequence[Video]) -> None:
    if not found:
        return
    if not images or not videos:
        media = _count(len(images) + len(videos), "video" if videos else "image")
        placeholders = f"{_count(len(found), 'placeholder')} ({found[0]})"
        if len(found) > len(images) + len(videos):
            raise SampleError(f"its texts have {placeholders}, but it has {media}.", "more placeholders than media")
        if len(found) < len(images) + len(videos):
            raise SampleError(f"it has {media}, but its texts have {placeholders}.", "more media than placeholders")
        return
    for kind, media in (("image", images), ("video", videos)):
        count = sum(kind in token for token in found)
        if count > len(media):
            raise SampleError(
                f"its texts have {_count(count, 'placeholder')} <{kind}>, but it has {_count(len(media), kind)}.",
                "more placeholders than media",
            )
        if count < len(media):
            raise SampleError(
                f"it has {_count(len(media), kind)}, but its texts have {_count(count, 'placeholder')} <{kind}>.",
                "more media than placeholders",
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _stand_at_the_ends(turns: Sequence[TextTurn]) -> bool:
    """Return whether all placeholders stand before or after the text of the first question."""
    first = _first_question(turns)
    middle = _AT_ENDS.fullmatch(turns[first].text) if turns else None
    others = (turn.text for index, turn in enumerate(turns) if index != first)
    return middle is not None and not _PLACEHOLDER.search(middle[1]) and not any(map(_PLACEHOLDER.search, others))


def _first_question(turns: Sequence[TextTurn]) -> int:
    return next((index for index, turn in enumerate(turns) if turn.role == "user"), 0)


def _media_first(turns: Sequence[TextTurn], media: Sequence[Image | Video]) -> list[Message]:
    first = _first_question(turns)
    return [
        as_message(turn.role, [*(media if index == first else ()), remove_placeholders(turn.text)], turn.learned)
        for index, turn in enumerate(turns)
    ]


def _in_place(text: str, left: dict[str, Iterator[Image] | Iterator[Video]], only: str | None) -> Parts:
    parts: Parts = []
    place = 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(text[place : found.start()])
        parts.append(next(left[only or ("image" if found[0] == "<image>" else "video")]))
        place = found.end()
    parts.append(text[place:])
    return [part for part in parts if part != ""]
