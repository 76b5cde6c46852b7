"""Codes of pictures -> images, videos and previews.

P positions, D codes of a position, S pixels of a side
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

import torch

from vila_core.generation.files import VIDEO_FPS
from vila_core.generation.heads import GenerationHead
from vila_core.media import Video

if TYPE_CHECKING:
    import PIL.Image

Codes = Sequence[Sequence[int]]
"""D numbers for each of P positions."""


@torch.inference_mode()
def to_frames(head: GenerationHead, codes: Codes, kind: str, device: torch.device) -> "list[PIL.Image.Image]":
    """Decode a complete picture: one frame of an image, or those of a video, `S` pixels wide and high."""
    import PIL.Image

    pixels = head.decode(torch.tensor(codes, dtype=torch.int64, device=device), kind)
    return [PIL.Image.fromarray(frame) for frame in pixels.cpu().numpy()]


def to_medium(frames: "list[PIL.Image.Image]", kind: str) -> "PIL.Image.Image | Video":
    """Return what users get: a PIL image, or a `Video` of PIL images."""
    return Video(frames, fps=VIDEO_FPS) if kind == "video" else frames[0]


def preview(head: GenerationHead, codes: Codes, kind: str, device: torch.device) -> "PIL.Image.Image":
    """Return a picture as it looks now; of a video, the frame that is being drawn.

    What is not drawn yet repeats the last row.
    """
    output = head.kinds[kind]
    row = row_of(output.positions // output.frames)
    known = list(codes) or [[0] * head.codes_per_position]
    while len(known) < output.positions:
        known.append(known[-row] if len(known) >= row else known[-1])
    frame = min(len(codes) * output.frames // output.positions, output.frames - 1)
    return to_frames(head, known, kind, device)[frame]


@dataclass(frozen=True)
class DrawingProgress:
    """How far the pictures of a prompt are.

    Attributes:
        done: positions of all pictures that have been drawn.
        total: positions that they have together.
    """

    done: int
    total: int
    head: GenerationHead
    kind: str
    codes: Sequence[Codes]
    device: torch.device

    def preview(self) -> "list[PIL.Image.Image]":
        """Return every picture as it looks now: see `preview`. It costs a decoder's pass."""
        return [preview(self.head, codes, self.kind, self.device) for codes in self.codes]


def row_of(positions: int) -> int:
    """Return how many positions a row of a square picture has."""
    return max(1, isqrt(positions))
