"""Media encoders: how the tokens of images and videos stand in the text."""

from typing import Annotated, Literal

from pydantic import Field

from vila_core import size_limits
from vila_core.config.base import Config, Frames


class MediaEncoderConfig(Config):
    """How the projected tokens of a medium become a block of the sequence. The token strings are tokenized as text."""

    name: str
    start_tokens: str | None = None
    end_tokens: str | None = "\n"


class BasicImageEncoderConfig(MediaEncoderConfig):
    """One block of tokens for each image."""

    name: Literal["BasicImageEncoder"] = "BasicImageEncoder"


class BasicVideoEncoderConfig(MediaEncoderConfig):
    """One block of tokens for each frame."""

    name: Literal["BasicVideoEncoder"] = "BasicVideoEncoder"


class TSPVideoEncoderConfig(MediaEncoderConfig):
    """Temporal-spatial pooling (LongVILA): one pass over the frames per (time, height, width) pool size."""

    name: Literal["TSPVideoEncoder"] = "TSPVideoEncoder"
    pool_sizes: Annotated[
        tuple[tuple[Frames, Frames, Frames], ...], Field(min_length=1, max_length=size_limits.MAX_POOL_SIZES)
    ]
    sep_tokens: str | None = None
