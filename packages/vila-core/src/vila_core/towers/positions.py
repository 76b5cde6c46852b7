"""Resizes position embeddings to another resolution by bicubic interpolation (Dosovitskiy et al. 2021, section 3.2).

P tokens (prefix tokens, then patches row by row), D width.
"""

import math

import torch
import torch.nn.functional as F

from vila_core.config import VisionTowerConfig


def resize_positions(positions: torch.Tensor, size: int, num_prefix_tokens: int) -> torch.Tensor:
    """Interpolate a square grid of learned positions to `size` x `size` patches. Prefix tokens stay unchanged.

    Args:
        positions: `[num_prefix_tokens + g * g, D]`, any floating dtype; interpolated in float32.
        size: side of the new grid, in patches.
        num_prefix_tokens: rows at the front that are not patches (such as a class token).

    Returns:
        `[num_prefix_tokens + size * size, D]` in the same dtype.
    """
    prefix, grid = positions[:num_prefix_tokens], positions[num_prefix_tokens:]
    side = math.isqrt(len(grid))
    image = grid.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # [1, D, g, g]
    resized = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=size < side)
    return torch.cat([prefix, resized[0].flatten(1).T.to(positions.dtype)])


def adapt_positions(positions: torch.Tensor, config: VisionTowerConfig, num_prefix_tokens: int) -> torch.Tensor:
    """Resize a checkpoint's positions `[P', D]` from `config.pretrained_image_size` to `config.image_size`.

    They are returned unchanged without `pretrained_image_size`, or if they have another number of rows; the loader then
    reports the mismatch.
    """
    if config.pretrained_image_size is None or config.pretrained_image_size == config.image_size:
        return positions
    if len(positions) != num_prefix_tokens + (config.pretrained_image_size // config.patch_size) ** 2:
        return positions
    return resize_positions(positions, config.image_size // config.patch_size, num_prefix_tokens)
