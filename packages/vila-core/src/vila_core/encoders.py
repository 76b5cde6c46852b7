"""Media encoders: the projected tokens of one image or video become its block of the sequence.

Dimensions: T tokens, F frames, S tokens a frame (a square grid), D language model width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vila_core.config import MediaEncoderConfig, TSPVideoEncoderConfig
from vila_core.errors import MediaError

EmbedText = Callable[[str], Tensor]
"""Text to the embeddings of its tokens, `[T, D]`."""


class MediaEncoder(nn.Module):
    """Base of the encoders: holds the config, and says which texts `embed` will be asked for."""

    def __init__(self, config: MediaEncoderConfig):
        super().__init__()
        self.config = config

    @property
    def texts(self) -> Sequence[str]:
        """The strings around and between media."""
        return [text for text in (self.config.start_tokens, self.config.end_tokens) if text is not None]

    def bracket_frames(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """Put start and end around every frame: `[F, S, D]` -> `[F · (start + S + end), D]`."""
        start, end = (
            [part.expand(len(tokens), -1, -1) for part in _optional(text, embed)]
            for text in (self.config.start_tokens, self.config.end_tokens)
        )
        return torch.cat([*start, tokens, *end], dim=1).flatten(0, 1)


class BasicImageEncoder(MediaEncoder):
    """start · tokens · end"""

    def forward(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """`[T, D]` -> `[T', D]`."""
        return self.bracket_frames(tokens[None], embed)


class BasicVideoEncoder(MediaEncoder):
    """start · tokens · end, for every frame"""

    def forward(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """`[F, S, D]` -> `[T', D]`."""
        return self.bracket_frames(tokens, embed)


class TSPVideoEncoder(MediaEncoder):
    """Temporal-spatial pooling (LongVILA, arXiv 2408.10188): for each pool size, average-pooled frames, then a separator."""

    config: TSPVideoEncoderConfig

    @property
    def texts(self) -> Sequence[str]:
        return [*super().texts, *([] if self.config.sep_tokens is None else [self.config.sep_tokens])]

    def forward(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """`[F, S, D]` -> `[T', D]`.

        Raises:
            MediaError: a pool size does not divide the number of frames, or the side of a frame's grid.
        """
        parts: list[Tensor] = []
        for pool_size in self.config.pool_sizes:
            parts.append(self.bracket_frames(_pool(tokens, *pool_size), embed))
            parts.extend(_optional(self.config.sep_tokens, embed))
        return torch.cat(parts)


def _pool(tokens: Tensor, t: int, h: int, w: int) -> Tensor:
    """Average boxes of t frames, h rows and w columns: `[F, S, D]` -> `[F / t, S / hw, D]`."""
    frames, patches, width = tokens.shape
    side = int(patches**0.5)
    if frames % t:
        nearest = [count for count in (frames // t * t, -(-frames // t) * t) if count]
        raise MediaError(
            f"This model pools {t} frames into one, which {frames} frames do not divide into. "
            f"Give a multiple of {t} frames, such as {' or '.join(map(str, nearest))}."
        )
    if side % h or side % w:
        raise MediaError(f"Pool size ({t}, {h}, {w}) does not divide a frame's {side}x{side} tokens.")
    # One axis after the other, as in the reference: the mean of means rounds differently from one mean.
    grid = tokens.view(frames // t, t, side, side, width).mean(1)
    grid = grid.view(frames // t, side // h, h, side, width).mean(2)
    grid = grid.view(frames // t, side // h, side // w, w, width).mean(3)
    return grid.flatten(1, 2)


def _optional(text: str | None, embed: EmbedText) -> list[Tensor]:
    return [] if text is None else [embed(text)]
