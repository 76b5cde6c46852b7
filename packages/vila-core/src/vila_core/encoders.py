"""Media encoders: the projected tokens of one image or video become its block of the sequence.

Dimensions: T tokens, F frames, S tokens a frame (a square grid), D language model width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vila_core.config import BasicImageEncoderConfig, BasicVideoEncoderConfig, MediaEncoderConfig, TSPVideoEncoderConfig
from vila_core.errors import MediaError

EmbedText = Callable[[str], Tensor]
"""Text to the embeddings of its tokens, `[T, D]`."""


def _optional(text: str | None, embed: EmbedText) -> list[Tensor]:
    return [] if text is None else [embed(text)]


class BasicImageEncoder(nn.Module):
    """start · tokens · end"""

    def __init__(self, config: BasicImageEncoderConfig):
        super().__init__()
        self.config = config

    @property
    def texts(self) -> Sequence[str]:
        """The strings that `embed` will be asked for."""
        return _texts(self.config)

    def forward(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """`[T, D]` -> `[T', D]`."""
        return torch.cat([*_optional(self.config.start_tokens, embed), tokens, *_optional(self.config.end_tokens, embed)])


class BasicVideoEncoder(nn.Module):
    """start · tokens · end, for every frame"""

    def __init__(self, config: BasicVideoEncoderConfig):
        super().__init__()
        self.config = config

    @property
    def texts(self) -> Sequence[str]:
        return _texts(self.config)

    def forward(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """`[F, S, D]` -> `[T', D]`."""
        return _bracket_frames(tokens, self.config, embed)


class TSPVideoEncoder(nn.Module):
    """Temporal-spatial pooling (LongVILA, arXiv 2408.10188): for each pool size, average-pooled frames, then a separator."""

    def __init__(self, config: TSPVideoEncoderConfig):
        super().__init__()
        self.config = config

    @property
    def texts(self) -> Sequence[str]:
        return _texts(self.config) + ([] if self.config.sep_tokens is None else [self.config.sep_tokens])

    def forward(self, tokens: Tensor, embed: EmbedText) -> Tensor:
        """`[F, S, D]` -> `[T', D]`.

        Raises:
            MediaError: a pool size does not divide the number of frames, or the side of a frame's grid.
        """
        parts: list[Tensor] = []
        for pool_size in self.config.pool_sizes:
            parts.append(_bracket_frames(self._pool(tokens, *pool_size), self.config, embed))
            parts.extend(_optional(self.config.sep_tokens, embed))
        return torch.cat(parts)

    def _pool(self, tokens: Tensor, t: int, h: int, w: int) -> Tensor:
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


def _texts(config: MediaEncoderConfig) -> list[str]:
    return [text for text in (config.start_tokens, config.end_tokens) if text is not None]


def _bracket_frames(tokens: Tensor, config: MediaEncoderConfig, embed: EmbedText) -> Tensor:
    """`[F, S, D]` -> `[F · (start + S + end), D]`"""
    frames = tokens.shape[0]
    start, end = ([part.expand(frames, -1, -1) for part in _optional(text, embed)] for text in (config.start_tokens, config.end_tokens))
    return torch.cat([*start, tokens, *end], dim=1).flatten(0, 1)
