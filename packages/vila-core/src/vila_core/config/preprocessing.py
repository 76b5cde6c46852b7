"""Preprocessing of images and videos, and time tokens."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_core import size_limits
from vila_core.config.base import Config, Deviation, Frames, Mean, Pixels, Tiles


class PixelConfig(Config):
    """Conversion of a PIL image to a normalized tensor: resize (and center-crop for CLIP), u8/255, (x - mean)/std."""

    size: Pixels
    resize: Literal["square", "shortest_edge"] = "square"
    crop: bool = False
    mean: tuple[Mean, Mean, Mean] = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    can_pad: bool = True
    """False if the preprocessor defines no mean color for `image_aspect_ratio: pad` (InternViT)."""


class PreprocessConfig(Config):
    """Preprocessing of images and videos to tiles. `vila.load` accepts these fields as overrides.

    `tile_all` tiles every image of a prompt (the reference tiles an image only if it is the only one).
    `video_as_images` gives video frames to the image encoder, with one `<image>` per frame.
    """

    image_aspect_ratio: Literal["resize", "dynamic", "dynamic_s2", "pad", "other"] = "resize"
    min_tiles: Tiles = 1
    max_tiles: Tiles = 12
    video_max_tiles: Tiles = 1
    num_video_frames: Frames = 8
    fps: Annotated[float, Field(ge=0, le=size_limits.MAX_FPS)] = 0.0
    s2_scales: Annotated[tuple[Pixels, ...], Field(max_length=size_limits.MAX_SCALES)] = ()
    tile_all: bool = False
    video_as_images: bool = False

    @model_validator(mode="after")
    def _tiles_in_order(self) -> "PreprocessConfig":
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is greater than max_tiles {self.max_tiles}")
        if self.image_aspect_ratio == "dynamic_s2" and len(self.s2_scales) < 2:
            raise ValueError("image_aspect_ratio 'dynamic_s2' needs at least two s2_scales")
        return self


class TimeTokenConfig(Config):
    """Time tokens of a video model: `count` tokens spread over the duration of a video, written as `format`."""

    count: Annotated[int, Field(gt=0, le=size_limits.MAX_TIME_TOKENS)]
    format: str = "<t{t}>"
