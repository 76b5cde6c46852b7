"""Turn images and video frames into tiles, exactly as the reference does (`llava/mm_utils.py`).

Dimensions: N tiles, H height, W width (pixels).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from vila_core.config import PixelConfig, PreprocessConfig
from vila_core.errors import ConfigError, MediaError
from vila_core.tiles import WHOLE, Normalization, TileLayout, Tiles

RESAMPLE = {"bicubic": PILImage.Resampling.BICUBIC, "bilinear": PILImage.Resampling.BILINEAR}
MAX_RESIZED_PIXELS = 100_000_000
"""Limit on the pixels of a picture after its shorter edge is resized, and of its columns while it is padded."""
MAX_PADDED_PIXELS = 1_000_000_000
"""Limit on the pixels of all padded rows of a picture, which take a few seconds: 31,600 rows of a narrow picture."""
MAX_THREADS = 8
"""Threads that resize the frames of a video or the tiles of a picture."""
PADDED_AT_ONCE = 4_000_000
"""Pixels of the padded rows that are in memory at a time."""


def to_bytes(image: PILImage.Image, config: PixelConfig) -> Tensor:
    """Return `image` (RGB) resized and cropped according to `config`, uint8 `[3, H, W]`, not yet normalized.

    Raises:
        MediaError: the picture is so narrow that resizing its shorter edge would make it too large.
    """
    resample = RESAMPLE[config.resample]
    if config.resize == "square":
        image = resized(image, (config.size, config.size), resample)
    else:
        short = min(image.size)
        if config.size**2 * max(image.size) > short * MAX_RESIZED_PIXELS:
            raise MediaError(
                f"The image is {image.width}x{image.height}, too narrow for a tower that resizes the shorter edge "
                f"to {config.size} pixels. Crop it, or use image_aspect_ratio 'pad' or 'resize'."
            )
        size = int(config.size * image.width / short), int(config.size * image.height / short)
        image = resized(image, size, resample)
    if config.crop:
        left, top = (image.width - config.size) // 2, (image.height - config.size) // 2
        image = image.crop((left, top, left + config.size, top + config.size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # the memory stays as it is: pixel by pixel


def resized(
    image: PILImage.Image, size: tuple[int, int], resample: PILImage.Resampling = RESAMPLE["bicubic"]
) -> PILImage.Image:
    """Return `image` with `size` (width, height): itself if it has that size, of which Pillow would make a copy."""
    return image if image.size == size else image.resize(size, resample)


def plain_image(image: PILImage.Image, pixels: PixelConfig, config: PreprocessConfig) -> Tensor:
    """Return one picture without tiling, uint8 `[3, H, W]`.

    Raises:
        ConfigError: `image_aspect_ratio` is "pad", but the tower's preprocessor defines no mean color.
    """
    if config.image_aspect_ratio == "resize":
        image = resized(image, (pixels.size, pixels.size))
    elif config.image_aspect_ratio == "pad":
        if not pixels.can_pad:
            raise ConfigError(
                "image_aspect_ratio 'pad' needs a mean color, which this vision tower's preprocessor does not define. "
                "Use 'resize'."
            )
        color = tuple(int(mean * 255) for mean in pixels.mean)
        image = resize_padded(image, color, pixels.size, RESAMPLE[pixels.resample])
    return to_bytes(image, pixels)


def resize_padded(
    image: PILImage.Image, color: tuple[int, ...], size: int, resample: PILImage.Resampling
) -> PILImage.Image:
    """Center `image` on a square filled with `color`, and resize that to `size` x `size`.

    The square of a narrow picture would be huge, so only a few of its rows exist at a time. The values are those of
    `square.resize(…)`, which also resizes rows first and then columns, with 8 bits in between.

    Raises:
        MediaError: the picture is so narrow that this would take long.
    """
    if image.width == image.height:
        return image.resize((size, size), resample)
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    if size * side > MAX_RESIZED_PIXELS or side * image.height > MAX_PADDED_PIXELS:
        raise MediaError(
            f"The image is {image.width}x{image.height}, too narrow to be padded to a square. Crop it, or use "
            "image_aspect_ratio 'resize'."
        )
    empty_row = PILImage.new(image.mode, (side, 1), color).resize((size, 1), resample)
    columns = empty_row.resize((size, side), PILImage.Resampling.NEAREST)
    height = max(1, PADDED_AT_ONCE // side)
    for start in range(0, image.height, height):
        rows = image.crop((0, start, image.width, min(start + height, image.height)))
        padded = PILImage.new(image.mode, (side, rows.height), color)
        padded.paste(rows, (left, 0))
        columns.paste(padded.resize((size, rows.height), resample), (0, top + start))
    return columns.resize((size, size), resample)


def aspect_ratios(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """Return the (columns, rows) candidates with `min_tiles` to `max_tiles` tiles, fewest tiles first.

    The reference leaves candidates with the same number of tiles in the order of a Python set. We build the same set,
    because ties in `closest_aspect_ratio` depend on that order (recorded in the parity suite).
    """
    candidates = {
        (columns, rows)
        for n in range(min_tiles, max_tiles + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    return sorted(candidates, key=lambda ratio: ratio[0] * ratio[1])


def closest_aspect_ratio(
    width: int, height: int, candidates: Sequence[tuple[int, int]], tile_size: int
) -> tuple[int, int]:
    """Return the (columns, rows) closest to the picture's shape. A later tie wins if the picture is large enough."""
    best, best_difference = (1, 1), float("inf")
    for columns, rows in candidates:
        difference = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (columns, rows), difference
    return best


def split_into_tiles(image: PILImage.Image, columns: int, rows: int, tile_size: int) -> Iterator[PILImage.Image]:
    """Resize `image` to the grid and yield its tiles row by row."""
    image = resized(image, (columns * tile_size, rows * tile_size))
    for row in range(rows):
        for column in range(columns):
            left, top = column * tile_size, row * tile_size
            yield image.crop((left, top, left + tile_size, top + tile_size))


def dynamic_tiles(
    image: PILImage.Image, pixels: PixelConfig, *, min_tiles: int, max_tiles: int
) -> tuple[list[PILImage.Image], tuple[int, int]]:
    """Return the tiles of the closest grid, a thumbnail if there are several tiles, and (rows, columns)."""
    columns, rows = closest_aspect_ratio(*image.size, aspect_ratios(min_tiles, max_tiles), pixels.size)
    tiles = list(split_into_tiles(image, columns, rows, pixels.size))
    if len(tiles) > 1:
        tiles.append(resized(image, (pixels.size, pixels.size)))
    return tiles, (rows, columns)


def dynamic_s2_tiles(
    image: PILImage.Image, pixels: PixelConfig, *, scales: Sequence[int], max_tiles: int
) -> tuple[list[PILImage.Image], tuple[int, int]]:
    """Return the tiles of all scales and the last scale's (rows, columns); only the last keeps the aspect ratio."""
    tiles: list[PILImage.Image] = []
    for scale in scales[:-1]:
        side = scale // scales[0]
        tiles.extend(split_into_tiles(image, side, side, pixels.size))
    at_least = (scales[-1] // scales[0]) ** 2
    columns, rows = closest_aspect_ratio(*image.size, aspect_ratios(at_least, max_tiles), pixels.size)
    tiles.extend(split_into_tiles(image, columns, rows, pixels.size))
    return tiles, (rows, columns)


def preprocess_image(image: PILImage.Image, pixels: PixelConfig, config: PreprocessConfig, *, tile: bool) -> Tiles:
    """Return one image as tiles. `tile` allows tiling if `image_aspect_ratio` asks for it."""
    if tile and config.image_aspect_ratio == "dynamic":
        tiles, grid = dynamic_tiles(image, pixels, min_tiles=config.min_tiles, max_tiles=config.max_tiles)
        return Tiles(_stack(tiles, pixels), TileLayout("separate", *grid), Normalization.of(pixels))
    if tile and config.image_aspect_ratio == "dynamic_s2":
        tiles, grid = dynamic_s2_tiles(image, pixels, scales=config.s2_scales, max_tiles=config.max_tiles)
        return Tiles(_stack(tiles, pixels), TileLayout("merged", *grid), Normalization.of(pixels))
    return _whole(plain_image(image, pixels, config)[None], pixels)


def preprocess_images(images: Sequence[PILImage.Image], pixels: PixelConfig, config: PreprocessConfig) -> list[Tiles]:
    """Return all images of a prompt as tiles. A single image may be tiled; several are tiled only with `tile_all`."""
    tile = len(images) == 1 or config.tile_all
    return [preprocess_image(image, pixels, config, tile=tile) for image in images]


def preprocess_video(frames: Sequence[PILImage.Image], pixels: PixelConfig, config: PreprocessConfig) -> Tiles:
    """Return a video's frames, tiled only if `video_max_tiles` allows several tiles per frame.

    Raises:
        MediaError: the frames have different shapes and so different numbers of tiles.
    """
    if config.video_max_tiles > 1 and config.image_aspect_ratio == "dynamic":
        tiled = [
            dynamic_tiles(frame, pixels, min_tiles=config.min_tiles, max_tiles=config.video_max_tiles)[0]
            for frame in frames
        ]
        counts = {len(tiles) for tiles in tiled}
        if len(counts) > 1:
            raise MediaError(
                f"The frames of a video need different numbers of tiles ({sorted(counts)}). "
                "Use frames of one size, or video_max_tiles=1."
            )
        return _whole(torch.cat([_stack(tiles, pixels) for tiles in tiled]), pixels)
    if config.video_max_tiles > 1 and config.image_aspect_ratio == "dynamic_s2":
        tiled = [
            dynamic_s2_tiles(frame, pixels, scales=config.s2_scales, max_tiles=config.max_tiles)[0] for frame in frames
        ]
        return _whole(torch.cat([_stack(tiles, pixels) for tiles in tiled]), pixels)
    return _whole(torch.stack(_in_threads(lambda frame: plain_image(frame, pixels, config), frames)), pixels)


def _whole(values: Tensor, pixels: PixelConfig) -> Tiles:
    return Tiles(values, WHOLE, Normalization.of(pixels))


def _stack(images: Sequence[PILImage.Image], pixels: PixelConfig) -> Tensor:
    return torch.stack(_in_threads(lambda image: to_bytes(image, pixels), images))


def _in_threads(function: Callable[[PILImage.Image], Tensor], images: Sequence[PILImage.Image]) -> list[Tensor]:
    """Return what `function` makes of each image; resizing lets other threads run."""
    threads = min(MAX_THREADS, len(images), os.cpu_count() or 1)
    if threads < 2:
        return [function(image) for image in images]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, images))
