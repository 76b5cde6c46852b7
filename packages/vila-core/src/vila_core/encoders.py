"""Media encoders turn the projected tokens of one image or video, and the text around them, into one block.

Dimensions: F frames, S tokens per frame (a square grid), D language model width, K media tokens of a block,
T' tokens of a prompt with media in place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vila_core.config import MediaEncoderConfig, TSPVideoEncoderConfig
from vila_core.errors import MediaError, PromptError

BlockLayout = list[str | int]
"""What a block consists of, in order: texts, and numbers of media tokens."""


class MediaEncoder(nn.Module):
    """Base class of the encoders. One image or tile is one frame.

    `layout` says where media tokens stand in a block, from shapes alone; `forward` computes these tokens. This is how
    the length of a prompt is known before anything is encoded.
    """

    def __init__(self, config: MediaEncoderConfig):
        super().__init__()
        self.config = config

    @property
    def texts(self) -> Sequence[str]:
        """The texts that `layout` may contain."""
        return [text for text in (self.config.start_tokens, self.config.end_tokens) if text is not None]

    @property
    def frame_group(self) -> int | None:
        """How many consecutive frames become tokens together, whatever the other frames are; None: all of them.

        A long block is computed in parts that are multiples of it. An encoder with a `forward` of its own says so
        itself.
        """
        return 1 if type(self).forward is MediaEncoder.forward else None

    def layout(self, frames: int, tokens_per_frame: int) -> BlockLayout:
        """Return the layout of the block of `frames` frames."""
        start, end = self.config.start_tokens, self.config.end_tokens
        return [part for _ in range(frames) for part in (start, tokens_per_frame, end) if part is not None]

    def forward(self, tokens: Tensor) -> Tensor:
        """`[F, S, D]` -> the media tokens of the block, `[K, D]`."""
        return tokens.flatten(0, 1)


class BasicImageEncoder(MediaEncoder):
    """start · tokens · end"""


class BasicVideoEncoder(MediaEncoder):
    """start · tokens · end, for every frame"""


class TSPVideoEncoder(MediaEncoder):
    """Temporal-spatial pooling (LongVILA, arXiv 2408.10188): pooled frames for each pool size, then a separator."""

    config: TSPVideoEncoderConfig

    @property
    def texts(self) -> Sequence[str]:
        return [*super().texts, *([] if self.config.sep_tokens is None else [self.config.sep_tokens])]

    @property
    def frame_group(self) -> int | None:
        """With one pool size, the frames that are pooled together. Every further size reads all frames again."""
        own = type(self).forward is TSPVideoEncoder.forward
        return self.config.pool_sizes[0][0] if own and len(self.config.pool_sizes) == 1 else None

    def layout(self, frames: int, tokens_per_frame: int) -> BlockLayout:
        """Return the layout of the block of `frames` frames.

        Raises:
            MediaError: a pool size does not divide the number of frames, or the side of a frame's grid.
        """
        side = int(tokens_per_frame**0.5)
        parts: BlockLayout = []
        for t, h, w in self.config.pool_sizes:
            _check_pool_size((t, h, w), frames, side)
            parts += super().layout(frames // t, (side // h) * (side // w))
            if self.config.sep_tokens is not None:
                parts.append(self.config.sep_tokens)
        return parts

    def forward(self, tokens: Tensor) -> Tensor:
        """`[F, S, D]` -> `[K, D]`. Raises `MediaError` as `layout` does."""
        return torch.cat([_pool(tokens, *pool_size).flatten(0, 1) for pool_size in self.config.pool_sizes])


def _check_pool_size(pool_size: tuple[int, int, int], frames: int, side: int) -> None:
    t, h, w = pool_size
    if frames % t:
        nearest = [count for count in (frames // t * t, -(-frames // t) * t) if count]
        raise MediaError(
            f"This model pools groups of {t} frames, and {frames} is not a multiple of {t}. "
            f"Use {' or '.join(map(str, nearest))} frames, for example."
        )
    if side % h or side % w:
        raise MediaError(f"Pool size {pool_size} does not divide a frame's {side}x{side} tokens.")


def _pool(tokens: Tensor, t: int, h: int, w: int) -> Tensor:
    """Average over boxes of t frames, h rows and w columns: `[F, S, D]` -> `[F / t, S / hw, D]`."""
    frames, patches, width = tokens.shape
    side = int(patches**0.5)
    _check_pool_size((t, h, w), frames, side)
    # One axis at a time, as in the reference: a mean of means rounds differently from a single mean.
    grid = tokens.view(frames // t, t, side, side, width).mean(1)
    grid = grid.view(frames // t, side // h, h, side, width).mean(2)
    grid = grid.view(frames // t, side // h, side // w, w, width).mean(3)
    return grid.flatten(1, 2)


@dataclass(frozen=True)
class ExpandedPrompt:
    """The token ids of a prompt with room for its media.

    Attributes:
        ids: T' token ids; 0 at media positions.
        places: the positions of media tokens, in order.
        blocks: for each medium, the positions of its blocks, with the texts around them. A medium has one block per
            media token in the prompt.
    """

    ids: list[int]
    places: list[int]
    blocks: list[list[range]]

    @property
    def media_lengths(self) -> list[int]:
        """Tokens of each medium."""
        return [sum(map(len, blocks)) for blocks in self.blocks]


def expand(
    input_ids: Sequence[int],
    media: Sequence[tuple[str, Sequence[BlockLayout]]],
    kinds: Mapping[int, str],
    text_ids: Mapping[str, Sequence[int]],
) -> ExpandedPrompt:
    """Replace each media token by its block.

    Args:
        input_ids: T token ids.
        media: in prompt order, the kind of each medium and the layouts of its blocks.
        kinds: the kind that each media token stands for.
        text_ids: the ids of the texts in the layouts.

    Raises:
        PromptError: media tokens and media do not agree.
    """
    remaining = iter([(index, kind, layout) for index, (kind, layouts) in enumerate(media) for layout in layouts])
    ids: list[int] = []
    places: list[int] = []
    blocks: list[list[range]] = [[] for _ in media]
    for token in input_ids:
        if token not in kinds:
            ids.append(token)
            continue
        index, kind, layout = next(remaining, (0, None, []))
        if kind is None:
            raise PromptError(f"The prompt has more {kinds[token]} tokens than {kinds[token]}s.")
        if kind != kinds[token]:
            raise PromptError(
                f"The prompt has a token for one {kinds[token]}, but the next medium is of kind '{kind}'."
            )
        start = len(ids)
        for part in layout:
            if isinstance(part, int):
                places += range(len(ids), len(ids) + part)
                ids += [0] * part
            else:
                ids += text_ids[part]
        blocks[index].append(range(start, len(ids)))
    if left := len(list(remaining)):
        raise PromptError(f"The prompt has no token for its last {left} images, tiles or videos.")
    return ExpandedPrompt(ids, places, blocks)
