"""The configurations that are worth measuring when a GPU is tuned."""

from __future__ import annotations

from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.panels import PanelConfig
from vila_quant.kernels.cuda.w4a16.tables import Config
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig
from vila_quant.kernels.cuda.w4a16.warpgroups import WarpgroupConfig

TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""The numbers of tokens that are measured. A product takes the configuration of the next larger one."""

PREFETCHED = (0, 1 << 20, 2 << 20, 3 << 20, 4 << 20, 6 << 20)
"""Bytes of the next weight, tried one after the other with the fastest configuration."""

PANEL_ROWS = (2112, 4224, 8448, 1 << 20)

FEW = tuple(
    DecodeConfig(*sizes)
    for sizes in (
        (1, 8, 2, 1, 80),
        (1, 8, 2, 2, 80),
        (1, 8, 2, 2, 96),
        (1, 8, 2, 2, 80, 4),
        (1, 8, 1, 1, 64),
        (1, 8, 4, 1, 104),
        (1, 8, 4, 2, 104),
        (1, 8, 2, 1, 72),
        (1, 16, 1, 1, 64),
        (1, 16, 1, 1, 64, 1),
        (1, 16, 2, 1, 64),
        (1, 16, 2, 1, 64, 1),
        (1, 4, 2, 1, 80),
        (2, 8, 1, 1, 72),
        (2, 8, 1, 1, 80),
        (2, 8, 1, 1, 80, 4),
        (2, 4, 1, 1, 80),
        (2, 4, 2, 1, 96),
        (2, 2, 1, 1, 80),
    )
)
"""Configurations for 1 to 8 tokens: tiles, warps, slots, units ahead, registers, chains."""

MORE = tuple(
    DecodeConfig(*sizes)
    for sizes in (
        *((1, 8, 1, 1, 80), (1, 8, 2, 1, 104), (1, 4, 1, 1, 80), (1, 4, 2, 1, 104), (1, 16, 1, 1, 64, 1)),
        (2, 16, 1, 1, 128),
        (2, 8, 1, 1, 128),
        (2, 8, 1, 1, 112, 1),
        (2, 4, 1, 1, 128),
        (2, 4, 1, 1, 112, 1),
        (2, 4, 2, 1, 168),
    )
)
"""Configurations for 9 to 16 tokens."""


def candidates(tokens: int) -> tuple[Config, ...]:
    """Return about twenty configurations worth measuring for so many tokens."""
    if tokens <= 8:
        return FEW
    if tokens <= 16:
        return MORE
    if tokens <= 64:
        rows = 32 if tokens <= 32 else 64
        tiles = [
            TileConfig(n, rows, 128, splits, warps, 4)
            for n, warps in ((128, 4), (64, 4), (128, 8))
            for splits in (1, 2, 4, 8)
        ]
        tiles += [TileConfig(n, rows, 128, 8, 4, 4, resident) for n in (128, 64) for resident in (2, 3)]
    else:
        sizes = [(128, 128, 64, 4, 3, 2), (128, 128, 64, 8, 4, 2), (64, 128, 128, 4, 3, 2), (64, 128, 64, 4, 4, 3)]
        sizes.append((128, 64, 128, 4, 4, 2) if tokens <= 128 else (128, 256, 64, 8, 4, 1))
        # With 8 splits only what is left over after whole waves is split, with the others every tile.
        tiles = [TileConfig(n, m, k, 8, warps, stages, resident) for n, m, k, warps, stages, resident in sizes]
        tiles += [
            TileConfig(n, m, k, splits, *more[:2])
            for n, m, k, *more in sizes
            for splits in ((1, 2, 4) if tokens <= 256 else (1,))
        ]
    whole = [WarpgroupConfig(128, 7)] if 64 < tokens <= 512 else []
    if tokens > 128:
        whole += [WarpgroupConfig(256, 5), WarpgroupConfig(256, 5, 16, 2), WarpgroupConfig(256, 5, 16, 3)]
    return (*tiles, *whole, *(PanelConfig(rows) for rows in (PANEL_ROWS if tokens > 256 else ())))
