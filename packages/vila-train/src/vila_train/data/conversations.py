"""What every dataset becomes for training: conversations with media in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vila_core.chat import Message
from vila_train.errors import TrainingError


class SampleError(TrainingError):
    """A sample cannot be used. It is skipped, counted and named; the run goes on."""


@dataclass(frozen=True)
class Conversation:
    """A sample as its dataset gives it.

    Attributes:
        name: unique in a mixture, such as "coco_captions/1234"; it says in messages which sample it is.
        messages: with roles "system", "user" and "assistant"; parts are texts, `Image`s and `Video`s in order,
            and media are not decoded yet.
    """

    name: str
    messages: Sequence[Message]


class ConversationSource(Protocol):
    """Conversations of one dataset with random access, the same ones on every call. Cheap to pickle for workers."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation:
        """Return conversation `index`. Raises `SampleError` if it is damaged."""
        ...
