"""Packed rows of text, images and a video for a model, for tests of what computes on them."""

import numpy as np
import PIL.Image
import torch

import vila_core as vila
from vila_core.chat import Message
from vila_core.media import MediaLimits
from vila_train.packing import PackedRow
from vila_train.samples import Encoder, TrainingSample


def mixed_samples(model: vila.Vila) -> list[TrainingSample]:
    """Return samples of text, an image, a video and several images."""
    draw = np.random.default_rng(0)
    image = lambda: vila.Image(PIL.Image.fromarray(draw.integers(0, 255, (50, 70, 3), dtype=np.uint8)))  # noqa: E731
    video = vila.Video(draw.integers(0, 255, (4, 48, 48, 3), dtype=np.uint8))
    conversations = [
        [Message("user", "Hello?"), Message("assistant", "Hi.")],
        [Message("user", [image(), "What is it?"]), Message("assistant", "A red square.")],
        [Message("user", [video, "Which way?"]), Message("assistant", "Left.")],
        [Message("user", [image(), image(), "Compare."]), Message("assistant", "The same.")],
    ]
    encoder = Encoder(model.network, model.tokenizer, model.template, MediaLimits())
    return [encoder.encode(f"sample {index}", messages) for index, messages in enumerate(conversations)]


def mixed_row(model: vila.Vila) -> PackedRow:
    """Return one row of `mixed_samples`."""
    return PackedRow.of(mixed_samples(model), torch.device("cpu"))
