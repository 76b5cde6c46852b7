"""RADIO and C-RADIO (Ranzinger et al. 2024, "AM-RADIO: Agglomerative Vision Foundation Model").

Parameters are named as in the hub checkpoints. A patch generator comes before a timm vision transformer: linear
patches, positions interpolated from one large grid ("CPE"), and summary and register tokens at the front.

N images, P patches, K summary and register tokens, D width, S side of the image in pixels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vila_core.config import RadioConfig
from vila_core.errors import ConfigError
from vila_core.towers.vit import (
    JointAttention,
    Mlp,
    VisionTower,
    check_heads,
    check_pixels,
    init_normal,
    num_layers_to_run,
)

IGNORED_WEIGHTS = (
    "radio_model.input_conditioner.",
    "radio_model.summary_idxs",
    "radio_model.adaptors.",
    "radio_model.inter_feature_normalizer.",
)
"""Pixel normalization (done in preprocessing), summary indices and heads of the teachers, and the normalizer of
intermediate layers."""


class SummaryTokens(nn.Module):
    """Summary tokens, one per teacher, then registers."""

    def __init__(self, num_tokens: int, hidden_size: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(num_tokens, hidden_size))


class PatchGenerator(nn.Module):
    """Summary tokens, then linear patches with positions: `[N, 3, S, S]` to `[N, K + P, D]`."""

    def __init__(self, config: RadioConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.max_image_size // config.patch_size
        self.embedder = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size**2, config.hidden_size))
        self.cls_token = SummaryTokens(config.num_summary_tokens + config.num_registers, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = (
            F.pixel_unshuffle(pixels.to(self.pos_embed.dtype), self.patch_size).flatten(2).transpose(1, 2)
        )  # [N, P, 3 * patch^2]
        patches = self.embedder(patches) + self.positions(
            pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        )
        return torch.cat([self.cls_token.token.expand(len(patches), -1, -1), patches], dim=1)

    def positions(self, rows: int, cols: int) -> torch.Tensor:
        """Return positions `[1, rows * cols, D]`: the learned grid, resized to the longer side and cropped.

        Resizing is bilinear, in float32.

        RADIO crops at random in training. This tower, like VILA, never does.
        """
        if rows == cols == self.grid_size:
            return self.pos_embed
        grid = self.pos_embed.unflatten(1, (self.grid_size, self.grid_size)).permute(0, 3, 1, 2)  # [1, D, G, G]
        side = max(rows, cols)
        resized = F.interpolate(grid.float(), size=(side, side), mode="bilinear", align_corners=False)
        return resized[:, :, :rows, :cols].flatten(2).transpose(1, 2).to(self.pos_embed.dtype)


class RadioBlock(nn.Module):
    """A pre-norm layer: `[N, K + P, D]` to `[N, K + P, D]`."""

    def __init__(self, config: RadioConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = JointAttention(config.hidden_size, config.num_attention_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attn(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


class RadioTransformer(nn.Module):
    """Patch generator, blocks, and a final norm if the checkpoint has one."""

    def __init__(self, config: RadioConfig):
        super().__init__()
        self.patch_generator = PatchGenerator(config)
        self.blocks = nn.ModuleList([RadioBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.final_norm else None


class FeatureNormalizer(nn.Module):
    """Standardize features with fixed statistics: `[..., D]` to `(x - mean) tx^T`."""

    mean: torch.Tensor
    tx: torch.Tensor

    def __init__(self, hidden_size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("tx", torch.eye(hidden_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features - self.mean, self.tx)


class RadioModel(nn.Module):
    """The transformer and its feature normalizer, named as in the checkpoint."""

    def __init__(self, config: RadioConfig):
        super().__init__()
        self.model = RadioTransformer(config)
        self.feature_normalizer = FeatureNormalizer(config.hidden_size) if config.normalize_features else None


class RadioTower(VisionTower):
    """RADIO as a vision tower. Both `patch` and `cls_patch` return only the patches, as in VILA.

    The last hidden state is RADIO's output, normalized if the checkpoint has a final norm or a feature normalizer.
    """

    def __init__(self, config: RadioConfig):
        super().__init__(config)
        check_heads(config)
        for name, size in (("image_size", config.image_size), ("max_image_size", config.max_image_size)):
            if size % config.patch_size:
                raise ConfigError(f"RADIO's {name} {size} is not a multiple of its patch_size {config.patch_size}.")
        self.num_channels = config.num_channels
        self.num_prefix_tokens = config.num_summary_tokens + config.num_registers
        self.depth = num_layers_to_run(config.select_layer, config.num_hidden_layers)
        self.runs_all_layers = self.depth == config.num_hidden_layers
        self.radio_model = RadioModel(config)
        self.reset_parameters()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images: `[N, 3, S, S]` to `[N, P, D]` in the weights' dtype.

        Raises:
            ConfigError: the pixels have another shape or an integer dtype.
        """
        check_pixels(pixels, self.num_channels, self.config.image_size)
        model, normalizer = self.radio_model.model, self.radio_model.feature_normalizer
        hidden = model.patch_generator(pixels)  # [N, K + P, D]
        for index in range(self.depth):
            hidden = model.blocks[index](hidden)
        if model.norm is not None and self.runs_all_layers:
            hidden = model.norm(hidden)
        features = hidden[:, self.num_prefix_tokens :]
        return normalizer(features) if normalizer is not None and self.runs_all_layers else features

    def ignores_weight(self, name: str) -> bool:
        """See `IGNORED_WEIGHTS`."""
        return name.startswith(IGNORED_WEIGHTS)

    def reset_parameters(self) -> None:
        """Initialize as timm does: linears with deviation 0.02, positions and tokens with deviation D^-0.5."""
        init_normal(self, std=0.02)
        generator = self.radio_model.model.patch_generator
        nn.init.normal_(generator.pos_embed, std=self.config.hidden_size**-0.5)
        nn.init.normal_(generator.cls_token.token, std=self.config.hidden_size**-0.5)
        if self.radio_model.feature_normalizer is not None:
            nn.init.zeros_(self.radio_model.feature_normalizer.mean)
            nn.init.eye_(self.radio_model.feature_normalizer.tx)
