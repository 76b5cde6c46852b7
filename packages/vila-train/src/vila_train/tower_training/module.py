"""A tower with what its own stage trains beside it.

N pictures, S pixels of a side, P positions of a picture, C width, D codes of a position, T tokens of a description
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vila_core.config import RQSiglipConfig, SiglipConfig
from vila_core.errors import ConfigError
from vila_core.towers.rq_siglip.tower import RQSiglipTower
from vila_core.towers.siglip import AttentionPoolingHead
from vila_train.tower_training.config import TowerLossConfig
from vila_train.tower_training.losses import reconstruction_loss, sigmoid_contrast
from vila_train.tower_training.quantizing import Quantized, draw_replacements, quantize

LOG_SCALE, BIAS = 2.302585, -10.0
"""Where SigLIP's scale (as logarithm of 10) and bias begin."""


class EncodesTexts(Protocol):
    """Texts to features: `TextEncoder`, or a frozen one of a pretrained SigLIP."""

    def __call__(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Token ids `[N, T]`, of which `counts` belong to the text -> features of length 1, `[N, C]`."""
        ...


@dataclass(frozen=True)
class TowerLosses:
    """Scalars; `total` is their weighted sum."""

    reconstruction: Tensor
    commitment: Tensor
    contrast: Tensor
    total: Tensor


class TowerTraining(nn.Module):
    """Reconstructs pictures from their codes, and tells which of a batch's descriptions belongs to which picture.

    The contrast compares texts with the *quantized* features, pooled by attention, so that codes carry meaning. The
    pooling, scale, bias and texts are not part of the model.

    Args:
        tower: with `keeps_ema`.
        texts: encodes descriptions to the tower's width; None trains without contrast.
        losses: weights.
    """

    def __init__(self, tower: RQSiglipTower, texts: EncodesTexts | None, losses: TowerLossConfig | None = None):
        super().__init__()
        require_trainable(tower.config)
        self.config = losses or TowerLossConfig()
        self.tower = tower
        self.texts = texts
        self.pool = None if texts is None else _pooling(tower.config)
        self.log_scale = nn.Parameter(torch.tensor(LOG_SCALE))
        self.bias = nn.Parameter(torch.tensor(BIAS))
        codebook = tower.quantizer.codebook(0)
        self.register_buffer(
            "replacements", torch.zeros(tower.code_depth, codebook.size, dtype=torch.int64), persistent=False
        )

    def draw_replacements(self, num_pictures: int, generator: torch.Generator) -> None:
        """Draw what unused codes become in the next step, in place, so that a captured CUDA graph reads it."""
        positions = num_pictures * self.tower.grid[0] * self.tower.grid[1]
        self.get_buffer("replacements").copy_(draw_replacements(self.tower.quantizer, positions, generator))

    def forward(self, pixels: Tensor, ids: Tensor | None = None, counts: Tensor | None = None) -> TowerLosses:
        """Return the losses of a batch; codebooks move in training mode.

        Args:
            pixels: normalized, `[N, 3, S, S]`, from -1 to 1.
            ids: int64 `[N, T]`, tokens of the descriptions; None: no contrast.
            counts: bool `[N, T]`, which of them belong to the description.
        """
        features = self.tower.features(pixels)  # [N, P, C]
        found = self._quantize(features)
        quantized = found.features.view(features.shape)
        decoded = self.tower.decode_features(quantized.unflatten(1, self.tower.grid))
        reconstruction = reconstruction_loss(decoded, fit(pixels, decoded))
        contrast = quantized.new_zeros(())
        if ids is not None and counts is not None and self.texts is not None and self.pool is not None:
            pictures = F.normalize(self.pool(quantized), dim=-1)
            contrast = sigmoid_contrast(pictures, self.texts(ids, counts), self.log_scale.exp(), self.bias)
        weights = self.config
        return TowerLosses(
            reconstruction,
            found.commitment,
            contrast,
            weights.reconstruction * reconstruction
            + weights.commitment * found.commitment
            + weights.contrast * contrast,
        )

    def _quantize(self, features: Tensor) -> Quantized:
        replacements = self.get_buffer("replacements") if self.training else None
        return quantize(self.tower.quantizer, features.flatten(0, 1), self.config.codebooks, replacements)


def require_trainable(config: RQSiglipConfig) -> None:
    """Raise `ConfigError` for a tower without the running averages that codebooks are trained with."""
    if not config.keeps_ema:
        raise ConfigError(
            "The tower's codebooks have no running averages (embed_ema, cluster_size_ema), which training updates. "
            "Build it with keeps_ema=True."
        )


def fit(pixels: Tensor, decoded: Tensor) -> Tensor:
    """Resize pictures to the size of decoded ones, if it differs (27 x 27 patches of 14 are decoded to 384 or 432)."""
    if pixels.shape == decoded.shape:
        return pixels
    return F.interpolate(pixels, decoded.shape[-2:], mode="bicubic", antialias=True)


def _pooling(config: RQSiglipConfig) -> AttentionPoolingHead:
    """Return SigLIP's pooling head with random weights."""
    fields = config.model_dump(include=SiglipConfig.model_fields.keys() - {"name"})
    head = AttentionPoolingHead(SiglipConfig(**fields))
    nn.init.normal_(head.probe, std=config.hidden_size**-0.5)
    return head
