"""Projectors: tower features to the language model's width. Most fold neighboring patches into one token.

The eight types and their layer numbering are the reference's (`llava/model/multimodal_projector/base_projector.py`).

Dimensions: N tiles, P patches (a square grid), D_v tower width, D language model width, r downsample rate.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vila_core.config import PROJECTOR_NAMES, ProjectorConfig
from vila_core.errors import ConfigError, unknown_name


class Downsample(nn.Module):
    """Fold each r×r neighborhood of patches into the channels: `[N, P, C]` -> `[N, P / r², r²·C]`.

    The grid is zero-padded at the bottom and right to a multiple of r.
    """

    def __init__(self, rate: int):
        super().__init__()
        self.rate = rate

    def forward(self, features: Tensor) -> Tensor:
        r = self.rate
        tiles, patches, channels = features.shape
        side = int(patches**0.5)
        grid = features.view(tiles, side, side, channels)
        grid = F.pad(grid, (0, 0, 0, -side % r, 0, -side % r))
        side = grid.shape[1] // r
        # [N, h, r, w, r, C] -> [N, h, w, r, r, C]
        grid = grid.view(tiles, side, r, side, r, channels).transpose(2, 3)
        return grid.reshape(tiles, side * side, r * r * channels)


class Projector(nn.Module):
    """`layers`, numbered as in the checkpoint."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers = layers

    def forward(self, features: Tensor) -> Tensor:
        """`[N, P, D_v]` -> `[N, P', D]`."""
        return self.layers(features)


def _mlp(widths: list[int], *, norm_between: bool) -> list[nn.Module]:
    """Linear layers through `widths` with GELU between them, and a LayerNorm before all but the last if asked."""
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for index in range(last + 1):
        if norm_between and index < last:
            layers.append(nn.LayerNorm(widths[index]))
        layers.append(nn.Linear(widths[index], widths[index + 1]))
        if index < last:
            layers.append(nn.GELU())
    return layers


def _downsampled(rate: int, widths: list[int]) -> Projector:
    return Projector(nn.Sequential(Downsample(rate), *_mlp([widths[0] * rate * rate, *widths[1:]], norm_between=True)))


# D_v, D -> projector
_TYPES: dict[str, Callable[[int, int], Projector]] = {
    "identity": lambda d_v, d: Projector(nn.Identity()),
    "linear": lambda d_v, d: Projector(nn.Linear(d_v, d)),
    "mlp_downsample": lambda d_v, d: _downsampled(2, [d_v, d, d]),
    "mlp_downsample_2x2_fix": lambda d_v, d: _downsampled(2, [d_v, d, d]),
    "mlp_downsample_3x3_fix": lambda d_v, d: _downsampled(3, [d_v, 3 * d_v, d, d]),
    "mlp_downsample_3x3_s2": lambda d_v, d: _downsampled(3, [d_v, 3 * d_v, d_v, d_v // 3, d, d]),
    "mlp_downsample_3x3_s2_new": lambda d_v, d: _downsampled(3, [d_v, 4 * d_v, 2 * d_v, d_v, d_v // 3, d, d]),
}


def build_projector(config: ProjectorConfig) -> Projector:
    """Return a projector without weights.

    Raises:
        ConfigError: the type is unknown, or `identity` would have to change the width.
    """
    if config.name == "identity" and config.in_size != config.out_size:
        raise ConfigError(f"Projector 'identity' cannot turn width {config.in_size} into {config.out_size}.")
    if config.name in _TYPES:
        return _TYPES[config.name](config.in_size, config.out_size)
    if match := re.fullmatch(r"mlp([1-9])x_gelu", config.name):
        widths = [config.in_size] + [config.out_size] * int(match.group(1))
        return Projector(nn.Sequential(*_mlp(widths, norm_between=False)))
    raise ConfigError(unknown_name("projector", config.name, PROJECTOR_NAMES))


CAPTURABLE = (Projector, Downsample, nn.Sequential, nn.Linear, nn.LayerNorm, nn.GELU, nn.Identity)
"""Modules that launch their kernels without reading a result."""


def is_capturable(projector: nn.Module, device: torch.device) -> bool:
    """Return whether a CUDA graph on `device` can hold the projector: one of this module, with 16-bit weights."""
    if any(type(module) not in CAPTURABLE for module in projector.modules()):
        return False
    return all(weight.device == device and weight.dtype.itemsize == 2 for weight in projector.parameters())


@torch.no_grad()
def reset_parameters(projector: Projector) -> None:
    """Initialize for training from scratch, with PyTorch's default for each layer."""
    for module in projector.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()
