"""What every dataset becomes for training: conversations with media in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vila_core.chat import Message, Role
from vila_core.media import Image, Video
from vila_train.errors import TrainingError


class SampleError(TrainingError):
    """A sample cannot be used. It is skipped, counted and named, and the run continues.

    Attributes:
        reason: what is wrong in a few words, the same for all samples with this fault, which are counted together.
        sample: the name of the sample; empty where only the caller knows it.
    """

    def __init__(self, message: str, reason: str = "damaged", sample: str = ""):
        super().__init__(message)
        self.reason = reason
        self.sample = sample

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str, str]]:
        return type(self), (str(self), self.reason, self.sample)


@dataclass(frozen=True)
class ContextMessage(Message):
    """An answer that the model reads but does not learn."""


def as_message(role: Role, parts: Sequence[str | Image | Video], learned: bool) -> Message:
    """Return a message with these parts, a `ContextMessage` if it is not learned."""
    return Message(role, parts) if learned else ContextMessage(role, parts)


@dataclass(frozen=True)
class Conversation:
    """A sample as its dataset gives it.

    Attributes:
        name: unique in a mixture, such as "coco_captions/1234"; it says in messages which sample it is.
        messages: with roles "system", "user" and "assistant"; parts are texts, `Image`s and `Video`s in order,
            and media are not decoded yet. `ContextMessage`s have no labels.
        is_document: running text with pictures, in one message: all of its text is learned, without a chat template.
    """

    name: str
    messages: Sequence[Message]
    is_document: bool = False


class ConversationSource(Protocol):
    """Conversations of one dataset with random access, the same ones on every call. Cheap to pickle for workers."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation:
        """Return conversation `index`. Raises `SampleError` if it is damaged."""
        ...
