"""Turns samples into arrays: token ids with placeholders for media, labels for the answer, and uint8 pixels.

Dimensions: n samples, M pictures or frames per sample, S image size in pixels, T tokens including media, K tokens per
picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vila_core.chat import MEDIA_TOKENS, ChatTemplate, Turn
from vila_core.config import BasicVideoEncoderConfig
from vila_core.encoders import BasicVideoEncoder, BlockLayout, MediaEncoder, expand
from vila_core.tokenizer import Tokenizer
from vila_train.labels import IGNORE_INDEX, expand_labels, tokenize_with_labels
from vila_train.tiny.world import make_sample
from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.drawing import draw
from vila_train.tiny.world.scenes import Sample, Scene


@dataclass(frozen=True)
class Encoded:
    """One sample as tokens, with one position per media token.

    Attributes:
        ids: token ids; 0 at the positions of media tokens.
        places: the positions of the media tokens, in order.
        labels: token ids for the answer and its end token, `IGNORE_INDEX` elsewhere. Not shifted.
    """

    ids: list[int]
    places: list[int]
    labels: list[int]


class Encoder:
    """Renders the chat template, tokenizes the text and expands media to their positions, as the model does.

    Args:
        tokenizer: the tokenizer of the model.
        template: the chat template.
        tokens_per_picture: number of projector tokens for one image or frame.
        encoder: the media encoder of the model, used for images and videos (in vila-tiny both do the same).
        text_after_media: follows each picture of a prompt.
        picture_answer: the answer that is a picture: its media token between the tokens that start and end it.
        split: texts between media are tokenized one by one, and the space before an answer is learned, as VILA-U does
            (see `tokenize_with_labels`).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        tokens_per_picture: int,
        encoder: MediaEncoder | None = None,
        *,
        text_after_media: str = "",
        picture_answer: str = "",
        split: bool = False,
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.tokens_per_picture = tokens_per_picture
        self.encoder = BasicVideoEncoder(BasicVideoEncoderConfig()) if encoder is None else encoder
        self._text_after_media = text_after_media
        self._picture_answer = picture_answer
        self._split = split
        self._kinds = {token: kind for kind, token in tokenizer.media_token_ids.items()}
        self._text_ids = {text: tokenizer.encode(text) for text in self.encoder.texts}

    def __call__(self, sample: Sample) -> Encoded:
        """Encode `sample` as a user message and the assistant's answer."""
        text = ""
        blocks: list[tuple[str, list[BlockLayout]]] = []
        for part in sample.prompt:
            if isinstance(part, str):
                text += part
                continue
            kind, frames = ("image", 1) if isinstance(part, Scene) else ("video", len(part.frames))
            text += MEDIA_TOKENS[kind] + self._text_after_media
            blocks.append((kind, [self.encoder.layout(frames, self.tokens_per_picture)]))
        answer = sample.answer
        if sample.drawn is not None:
            assert self._picture_answer, "the model draws"
            answer = self._picture_answer
            blocks.append(("image", [self.encoder.layout(1, self.tokens_per_picture)]))
        turns = [Turn("user", text), Turn("assistant", answer)]
        ids, labels = tokenize_with_labels(turns, self.tokenizer, self.template, split=self._split)
        expanded = expand(ids, blocks, self._kinds, self._text_ids)
        return Encoded(expanded.ids, expanded.places, expand_labels(ids, labels, self._kinds, expanded))


@dataclass(frozen=True)
class Shard:
    """Samples of one source with the same number of pictures.

    Attributes:
        pixels: uint8 `[n, M, 3, S, S]`.
        ids, labels: int16 `[n, T]`, padded on the right with 0 and `IGNORE_INDEX`.
        places: int16 `[n, M·K]`, the positions of the media tokens.
    """

    pixels: NDArray[np.uint8]
    ids: NDArray[np.int16]
    places: NDArray[np.int16]
    labels: NDArray[np.int16]

    def save(self, path: Path) -> None:
        """Write pixels, ids, places and labels to `path`, one .npy array after another."""
        with path.open("wb") as file:
            for array in (self.pixels, self.ids, self.places, self.labels):
                np.save(file, array)

    @classmethod
    def load(cls, path: Path) -> "Shard":
        with path.open("rb") as file:
            return cls(*(np.load(file) for _ in range(4)))


def to_bytes(scene: Scene, image_size: int) -> NDArray[np.uint8]:
    """Draw and resize the picture like vila_core with `image_aspect_ratio` "resize", `[3, S, S]`."""
    return np.asarray(draw(scene).resize((image_size, image_size))).transpose(2, 0, 1)


def make_shard(samples: Sequence[Sample], encoder: Encoder, image_size: int) -> Shard:
    """Encode and draw `samples`, which all have the same number of pictures."""
    encoded = [encoder(sample) for sample in samples]
    pixels = np.stack([np.stack([to_bytes(scene, image_size) for scene in sample.scenes]) for sample in samples])
    return Shard(
        pixels,
        pad([one.ids for one in encoded], 0),
        np.array([one.places for one in encoded], dtype=np.int16),
        pad([one.labels for one in encoded], IGNORE_INDEX),
    )


def pad(rows: Sequence[Sequence[int]], value: int, multiple: int = 8) -> NDArray[np.int16]:
    """Return `rows` as one int16 array, padded on the right with `value` to a multiple of `multiple` columns."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    array = np.full((len(rows), width), value, dtype=np.int16)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def drawn_samples(split: Split, source: str, start: int, stop: int) -> list[Sample]:
    """Return samples `start` to `stop` (exclusive) of a source of the drawn world."""
    return [make_sample(split, source, index) for index in range(start, stop)]
