"""The decoder of VQGAN (Esser et al. 2021, "Taming transformers for high-resolution image synthesis").

N images, C channels, h x w the grid at a level
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vila_core.config import PixelDecoderConfig


class ResidualBlock(nn.Module):
    """Two convolutions, and a shortcut: `[N, C, h, w]` -> `[N, C', h, w]`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = _group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One head of attention over the positions of a grid: `[N, C, h, w]` -> `[N, C, h, w]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2) for conv in (self.q, self.k, self.v))  # [N, C, hw]
        # Step by step, which rounds as the reference does in 16 bits; grids with attention are small.
        weights = (torch.bmm(q.transpose(1, 2), k) * x.shape[1] ** -0.5).softmax(dim=-1)  # [N, hw, hw]
        mixed = torch.bmm(v, weights.transpose(1, 2))  # [N, C, hw]
        return x + self.proj_out(mixed.unflatten(2, x.shape[2:]))


class Upsample(nn.Module):
    """Double the grid by repetition, then convolve: `[N, C, h, w]` -> `[N, C, 2h, 2w]`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention after it if the level has attention."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, *, attention: bool, upsample: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(blocks) if attention)
        self.upsample = Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """A block, attention and a block at the coarsest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class PixelDecoder(nn.Module):
    """`[N, z_channels, h, w]` -> pixels `[N, 3, h · scale, w · scale]`, about -1 to 1 and not clamped."""

    def __init__(self, config: PixelDecoderConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        sides = [config.resolution // 2**level for level in range(len(widths))]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(level + 1, len(widths) - 1)],
                width,
                config.num_res_blocks + 1,
                attention=sides[level] in config.attention_resolutions,
                upsample=level != 0,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = _group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


@torch.no_grad()
def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels `[N, 3, H, W]` from -1 to 1 -> uint8 `[N, H, W, 3]`, rounded (the reference truncates)."""
    return ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
