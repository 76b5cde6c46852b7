"""SigLIP and CLIP towers of fused operators on an NVIDIA GPU: the same function as the tower's own `forward`.

N images, P tokens, D width, S side of the image in pixels, p side of a patch, M = N · P rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vila_core.config import ViTConfig
from vila_core.ops.module_state import ModuleState
from vila_core.ops.row_settings import ACTIVATIONS
from vila_core.ops.support import refusal
from vila_core.towers.clip import ClipTower
from vila_core.towers.fused_layers import FusedLayer, fuse
from vila_core.towers.siglip import SiglipTower
from vila_core.towers.vit import EncoderLayer, select_tokens

FusableTower = SiglipTower | ClipTower

FIRST_LAYERS = 4
"""Layers that `FusedTower.begin` runs."""
ALIGNED = 8
"""cuBLAS is slow where a row of 16-bit numbers is not a multiple of this."""


def fused_refusal(tower: FusableTower, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the tower cannot run fused; None if it can."""
    if _activation_name(tower) not in ACTIVATIONS:
        return f"it has no activation '{_activation_name(tower)}'"
    return refusal(device, dtype)


@dataclass(frozen=True)
class Hidden:
    """Hidden states between two layers.

    Attributes:
        h: `[M, D]`.
        pending: what is still to be added to them.
        images: N.
    """

    h: Tensor
    pending: Tensor | None
    images: int


class FusedTower:
    """Pixels `[N, C, S, S]` -> features `[N, P, D]`.

    Building it moves the tower's weights: the parameters become parts of larger tensors.

    Args:
        tower: on a GPU, in fp16 or bf16.
    """

    def __init__(self, tower: FusableTower):
        self._tower = tower
        layers = [cast("EncoderLayer", layer) for layer in tower.vision_model.encoder.layers]
        self.dtype = layers[0].layer_norm1.weight.dtype
        self._layers = [_fused(layer, _activation_name(tower)) for layer in layers[: tower.depth]]
        self._patches = PatchProduct(tower.vision_model.embeddings.patch_embedding)
        self._state = ModuleState(tower)

    def is_current(self) -> bool:
        """Return whether the tower still has the weights that it had, and nothing watches its layers."""
        return self._state.is_current()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode images on the tower's device, any floating dtype."""
        return self.finish(self.begin(pixels))

    def begin(self, pixels: Tensor) -> Hidden:
        """Run the first layers. They are launched, as a graph of their own, in a fraction of the time of all."""
        hidden = self._embed(pixels)
        return self._run(Hidden(hidden.view(-1, hidden.shape[-1]), None, len(hidden)), self._layers[:FIRST_LAYERS])

    def finish(self, hidden: Hidden) -> Tensor:
        """Run the other layers, which may overwrite `hidden`, and return the features."""
        last = self._run(hidden, self._layers[FIRST_LAYERS:])
        h = last.h if last.pending is None else last.h.add_(last.pending)
        return select_tokens(h.view(last.images, -1, h.shape[-1]), self._tower.config.select_feature)

    def _run(self, hidden: Hidden, layers: Sequence[FusedLayer]) -> Hidden:
        h, pending = hidden.h, hidden.pending
        for layer in layers:
            h, pending = layer(h, pending, hidden.images)
        return Hidden(h, pending, hidden.images)

    def _embed(self, pixels: Tensor) -> Tensor:
        embeddings = self._tower.vision_model.embeddings
        patches = self._patches(pixels)
        if isinstance(self._tower, SiglipTower):
            return patches.add_(embeddings.position_embedding.weight)
        token = self._tower.vision_model.embeddings.class_embedding.expand(len(patches), 1, -1)
        hidden = torch.cat([token, patches], dim=1).add_(embeddings.position_embedding.weight)
        return self._tower.vision_model.pre_layrnorm(hidden)


class PlainLayer:
    """A layer that is not fused: its linears run on kernels of other kinds."""

    def __init__(self, layer: nn.Module):
        self._layer = layer

    def __call__(self, h: Tensor, pending: Tensor | None, images: int) -> tuple[Tensor, Tensor | None]:
        """See `FusedLayer`."""
        h = h if pending is None else h.add_(pending)
        return self._layer(h.unflatten(0, (images, -1))).flatten(0, 1), None


def _fused(layer: EncoderLayer, act: str) -> FusedLayer:
    fused = fuse(layer, act)
    return PlainLayer(layer) if fused is None else fused


def _activation_name(tower: FusableTower) -> str:
    assert isinstance(tower.config, ViTConfig)
    return tower.config.hidden_act


class PatchProduct:
    """The strided convolution of patches as a product: `[N, C, S, S]` -> `[N, (S / p)², D]`."""

    def __init__(self, conv: nn.Conv2d):
        weight = conv.weight.detach().flatten(1)  # [D, C p p]
        self._weight = F.pad(weight, (0, -weight.shape[1] % ALIGNED))
        self._bias = conv.bias
        self._side = conv.kernel_size[0]

    def __call__(self, pixels: Tensor) -> Tensor:
        side = self._side
        tiles = pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)  # [N, h, w, C, p, p]
        images, height, width = tiles.shape[:3]
        inputs = tiles[0, 0, 0].numel()
        x = self._weight.new_zeros(images * height * width, self._weight.shape[1])
        x[:, :inputs].view(tiles.shape).copy_(tiles)
        return F.linear(x, self._weight, self._bias).view(images, height * width, -1)
