"""Samples of both directions for a tiny VILA-U: pictures to describe and to draw, videos to draw, and texts."""

from dataclasses import dataclass

import numpy as np
import PIL.Image

import vila_core as vila
from vila_core.chat import Message
from vila_train.data.conversations import Conversation


def picture(number: int, width: int = 70, height: int = 50) -> vila.Image:
    values = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return vila.Image(PIL.Image.fromarray(values))


def conversation(number: int) -> Conversation:
    text = f"Number {number}."
    messages = {
        0: [Message("user", text), Message("assistant", [picture(number)])],
        1: [Message("user", [picture(number), text]), Message("assistant", "Noise.")],
        2: [Message("user", text), Message("assistant", "Yes.")],
        3: [Message("user", text), Message("assistant", [vila.Video([picture(number + i) for i in range(8)])])],
        4: [Message("user", text), Message("assistant", "No."), Message("user", "Draw."),
            Message("assistant", picture(1))],
    }  # fmt: skip
    return Conversation(f"drawing/{number}", messages[number % 5])


@dataclass(frozen=True)
class Drawings:
    """An order of samples that does not change from epoch to epoch."""

    count: int = 20

    def __len__(self) -> int:
        return self.count

    def conversation(self, epoch: int, position: int) -> Conversation:
        return conversation(position)
