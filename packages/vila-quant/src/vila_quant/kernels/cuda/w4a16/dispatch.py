"""Chooses the kernel by the number of tokens and the layer's shape, from a table (see `tables`)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vila_quant.kernels.cuda.w4a16 import tables
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig, decode
from vila_quant.kernels.cuda.w4a16.panels import multiply_panels
from vila_quant.kernels.cuda.w4a16.tables import Config
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig, multiply_tiles
from vila_quant.kernels.cuda.w4a16.warpgroups import WarpgroupConfig, is_supported, multiply_warpgroups

PDL_CAPABILITY = 9


@cache
def choose(tokens: int, outputs: int, inputs: int, device: torch.device) -> Config:
    """Return the configuration for a product on `device`."""
    name = torch.cuda.get_device_name(device)
    return tables.choose(name, tokens, outputs, inputs, lambda config: runs_on(config, device))


def runs_on(config: Config, device: torch.device) -> bool:
    """Return whether the kernel of `config` runs on `device`."""
    return not isinstance(config, WarpgroupConfig) or is_supported(torch.cuda.get_device_capability(device))


@cache
def _properties(device: torch.device) -> tuple[bool, int]:
    """Return whether a kernel may start early, and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= PDL_CAPABILITY, properties.multi_processor_count


def run(
    config: Config,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    y: Tensor,
    group_size: int,
    next_packed: Tensor | None = None,
) -> None:
    """Write `x Wᵀ + bias` to `y` with the kernel that `config` belongs to."""
    pdl, multiprocessors = _properties(x.device)
    if isinstance(config, DecodeConfig):
        decode(x, packed, bias, y, group_size, config, next_packed=next_packed, pdl=pdl)
    elif isinstance(config, TileConfig):
        multiply_tiles(x, packed, bias, y, group_size, config, multiprocessors=multiprocessors, pdl=pdl)
    elif isinstance(config, WarpgroupConfig):
        multiply_warpgroups(x, packed, bias, y, group_size, config, multiprocessors=multiprocessors, pdl=pdl)
    else:
        multiply_panels(x, packed, bias, y, group_size, config)


def launches_early(device: torch.device) -> bool:
    """Return whether a kernel on `device` may start before the one ahead of it ends."""
    return _properties(device)[0]
