"""S2 (Shi et al. 2024, "When Do We Not Need Larger Vision Models?"): features of one image at several scales.

Static S2 (`multiscale`) makes the scales from one square tensor. In dynamic S2 (NVILA), preprocessing cuts tiles
from every scale, keeping the aspect ratio of the image at the last one, and `merge_scales` merges their features.

N images, b images of one chessboard, P patches per tile, D width, K scales, h x w grid of a tile.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from vila_core.config import S2Config
from vila_core.errors import ConfigError


def as_grid(features: torch.Tensor) -> torch.Tensor:
    """Arrange patches as a square grid: `[N, P, D]` to `[N, D, h, h]`. Raises `ConfigError` if P is not a square."""
    side = math.isqrt(features.shape[1])
    if side * side != features.shape[1]:
        raise ConfigError(
            f"S2 got {features.shape[1]} tokens per tile, which is not a square number. "
            "Set select_feature to 'patch' if the tower has a class token, else to 'cls_patch'."
        )
    return features.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def merge_chessboard(tiles: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Join tiles into maps: `[rows * cols * b, P, D]` or `[rows * cols * b, D, h, w]` to `[b, D, rows * h, cols * w]`.

    Tiles are row-major; the b images at one position are adjacent.

    Raises:
        ConfigError: the number of tiles is not a multiple of rows * cols.
    """
    grid = as_grid(tiles) if tiles.ndim == 3 else tiles
    if len(grid) == 0 or len(grid) % (rows * cols):
        raise ConfigError(f"S2 got {len(grid)} tiles for a chessboard of {rows} x {cols}.")
    board = grid.unflatten(0, (rows, cols, -1)).permute(2, 3, 0, 4, 1, 5)  # [b, D, rows, h, cols, w]
    return board.flatten(4, 5).flatten(2, 3)


def split_chessboard(maps: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Cut maps into tiles: `[b, D, rows * h, cols * w]` to `[rows * cols * b, D, h, w]`. Inverse of `merge_chessboard`.

    Raises:
        ConfigError: the map cannot be divided into rows and columns.
    """
    height, width = maps.shape[-2:]
    if height % rows or width % cols:
        raise ConfigError(f"S2 cannot cut a map of {height} x {width} into {rows} x {cols} equal tiles.")
    board = maps.unflatten(3, (cols, -1)).unflatten(2, (rows, -1))  # [b, D, rows, h, cols, w]
    return board.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def concatenate_scales(maps: Sequence[torch.Tensor], index: int) -> torch.Tensor:
    """Resize every map to the grid of `maps[index]` by area interpolation (in float32) and concatenate the channels.

    K maps `[b, D, h_k, w_k]` give `[b, K * D, h_index, w_index]`.
    """
    size = maps[index].shape[-2:]
    return torch.cat([F.interpolate(x.float(), size=size, mode="area").to(x.dtype) for x in maps], dim=1)


def multiscale(
    tower_forward: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, config: S2Config
) -> torch.Tensor:
    """Static S2: run the tower on every scale, in tiles of at most `max_split_size`.

    Args:
        tower_forward: `[N, 3, S, S]` to `[N, P, D]`, with tile size S and square P.
        pixels: `[N, 3, S', S']` normalized, usually at the largest scale.
        config: scales (used in ascending order), tile size, and the scale whose grid the result has.

    Returns:
        `[N, P', K * D]`, channels in the order of the scales.

    Raises:
        ConfigError: a scale cannot be cut into equal tiles.
    """
    maps: list[torch.Tensor] = []
    for scale in sorted(config.scales):
        num_splits = math.ceil(scale / config.max_split_size)
        scaled = F.interpolate(pixels.float(), size=(scale, scale), mode="bicubic").to(pixels.dtype)
        features = tower_forward(split_chessboard(scaled, num_splits, num_splits))
        maps.append(merge_chessboard(features, num_splits, num_splits))
    return concatenate_scales(maps, config.resize_output_to_scale_idx).flatten(2).transpose(1, 2)


def merge_scales(
    features: torch.Tensor, block_sizes: Sequence[tuple[int, int] | None], config: S2Config
) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """Dynamic S2: merge the features of each image's tiles over the scales.

    Args:
        features: `[N, P, D]`, tiles of all images, image by image, scale by scale, row-major.
        block_sizes: (rows, cols) of the last scale of each image; None for an image of one tile.
        config: scales (used in ascending order, multiples of the first), and the scale whose grid the result has.

    Returns:
        For each image, a map `[1, K * D, H, W]` and the (rows, cols) to cut it into for the projector. For an image of
        one tile, the features are repeated for each scale.

    Raises:
        ConfigError: the number of tiles does not match the block sizes.
    """
    counts = [
        1 if block is None else sum(rows * columns for rows, columns in boards_of(block, config))
        for block in block_sizes
    ]
    if sum(counts) != len(features):
        raise ConfigError(f"S2 got {len(features)} tiles, but the block sizes {list(block_sizes)} take {sum(counts)}.")
    merged: list[torch.Tensor] = []
    for tiles, block in zip(features.split(counts), block_sizes, strict=True):
        if block is None:
            merged.append(as_grid(tiles).repeat(1, len(config.scales), 1, 1))
            continue
        boards = boards_of(block, config)
        maps = [
            merge_chessboard(x, *board)
            for x, board in zip(tiles.split([r * c for r, c in boards]), boards, strict=True)
        ]
        merged.append(concatenate_scales(maps, config.resize_output_to_scale_idx % len(boards)))
    return merged, [merged_board(block, config) for block in block_sizes]


def boards_of(block_size: tuple[int, int], config: S2Config) -> list[tuple[int, int]]:
    """Return the (rows, cols) of an image at each scale, given those of the last scale."""
    scales = sorted(config.scales)
    return [*((scale // scales[0], scale // scales[0]) for scale in scales[:-1]), block_size]


def merged_board(block_size: tuple[int, int] | None, config: S2Config) -> tuple[int, int]:
    """Return the (rows, cols) to cut the merged map of an image into for the projector."""
    return (1, 1) if block_size is None else boards_of(block_size, config)[config.resize_output_to_scale_idx]
