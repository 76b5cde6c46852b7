"""B images, P patches, D width."""

import torch
from torch import nn

from vila_plugin_good.plugin import PatchMeanConfig


class PatchMeanTower(nn.Module):
    """The mean colour of each patch, projected to the hidden size."""

    def __init__(self, config: PatchMeanConfig):
        super().__init__()
        self.config = config
        self.pool = nn.AvgPool2d(config.patch_size)
        self.project = nn.Linear(3, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixels [B, 3, H, W]` -> `features [B, P, D]`."""
        return self.project(self.pool(pixels).flatten(2).transpose(1, 2))
