"""Checks samples of a dataset: how many can be used, and what is wrong with the others."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vila_core.conversation import parts_of
from vila_core.errors import MediaError
from vila_core.media import Image, MediaLimits, Video
from vila_train.data.bad_samples import as_skipped
from vila_train.data.conversations import Conversation, ConversationSource
from vila_train.data.sources import as_sample_error

SHOWN = 5
"""How many bad samples of each kind are named."""


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        size: samples of the dataset.
        checked: how many of them were read.
        bad: how many of those cannot be used, by reason.
        first: messages about the first of them, at most `SHOWN`.
        images, videos: of the samples that can be used.
        characters: of their texts.
    """

    size: int
    checked: int
    bad: Mapping[str, int]
    first: tuple[str, ...]
    images: int
    videos: int
    characters: int

    @property
    def usable(self) -> int:
        """How many of the checked samples can be used."""
        return self.checked - sum(self.bad.values())


def check_source(
    source: ConversationSource,
    limit: int | None = None,
    decode: bool = False,
    on_sample: Callable[[], None] = lambda: None,
) -> Findings:
    """Read samples of a dataset.

    Args:
        source: the dataset.
        limit: read at most so many, evenly spread; None reads all.
        decode: load images, and a frame of each video, too.
        on_sample: called after each.
    """
    size = len(source)
    count = size if limit is None else min(limit, size)
    bad: Counter[str] = Counter()
    first: list[str] = []
    media: Counter[type] = Counter()
    characters = 0
    for number in range(count):
        try:
            conversation = source[number * size // count]
            if decode:
                load_media(conversation)
        except Exception as error:  # noqa: BLE001 - `as_skipped` raises what is not the sample's fault
            found = as_skipped(error, f"{source.name}/{number * size // count}")
            bad[found.reason] += 1
            if len(first) < SHOWN and bad[found.reason] <= max(1, SHOWN - len(bad) + 1):
                first.append(found.message)
        else:
            parts = [part for message in conversation.messages for part in parts_of(message)]
            media.update(type(part) for part in parts)
            characters += sum(len(part) for part in parts if isinstance(part, str))
        on_sample()
    return Findings(size, count, dict(bad.most_common()), tuple(first), media[Image], media[Video], characters)


def load_media(conversation: Conversation) -> None:
    """Decode the images of a conversation, and a frame of each video. Raises `SampleError`."""
    limits = MediaLimits(fetch=None)
    for message in conversation.messages:
        for part in parts_of(message):
            try:
                if isinstance(part, Image):
                    part.load(limits)
                elif isinstance(part, Video):
                    Video(part.source, frames=1).load(1, limits=limits)
            except MediaError as error:
                raise as_sample_error(conversation.name, error) from None
