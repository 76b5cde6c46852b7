"""InternViT (Chen et al. 2023, "InternVL"): a class token, one projection for q, k and v, q/k norms, layer scale.

The 6B tower has RMSNorm and q/k norms over the full width (before the heads are split); the 300M tower has LayerNorm,
q/k/v biases and no q/k norm. N images, P tokens (class token, then patches), D width, S side of the image in pixels.
"""

import torch
from torch import nn

from vila_core.config import InternVitConfig
from vila_core.towers.positions import adapt_positions
from vila_core.towers.vit import (
    Encoder,
    JointAttention,
    Mlp,
    VisionTower,
    check_heads,
    check_pixels,
    init_normal,
    num_layers_to_run,
    select_tokens,
)


class InternVitNorm(nn.Module):
    """RMSNorm computed in float32: `weight * x / sqrt(mean(x^2) + eps)`, rounded to x's dtype before the weight."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def build_norm(config: InternVitConfig) -> nn.Module:
    """Return a norm of type `norm_type` over the full width."""
    if config.norm_type == "rms_norm":
        return InternVitNorm(config.hidden_size, config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def build_qk_norms(config: InternVitConfig) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the norms of q and k over the full width; (None, None) without `qk_normalization`."""
    if not config.qk_normalization:
        return None, None
    return InternVitNorm(config.hidden_size, config.layer_norm_eps), InternVitNorm(
        config.hidden_size, config.layer_norm_eps
    )


class InternVitEmbeddings(nn.Module):
    """A class token, patches by a strided convolution, learned positions for both: `[N, 3, S, S]` to `[N, P, D]`."""

    def __init__(self, config: InternVitConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(
            torch.empty(1, 1 + (config.image_size // config.patch_size) ** 2, config.hidden_size)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], dim=1) + self.position_embedding


class InternVitLayer(nn.Module):
    """A pre-norm layer whose two residual branches are scaled per channel: `[N, P, D]` to `[N, P, D]`."""

    def __init__(self, config: InternVitConfig):
        super().__init__()
        self.norm1 = build_norm(config)
        self.attn = JointAttention(
            config.hidden_size, config.num_attention_heads, config.qkv_bias, *build_qk_norms(config)
        )
        self.ls1 = nn.Parameter(torch.empty(config.hidden_size))
        self.norm2 = build_norm(config)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.ls2 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.ls1 * self.attn(self.norm1(hidden))
        return hidden + self.ls2 * self.mlp(self.norm2(hidden))


class InternVitTower(VisionTower):
    """InternViT as a vision tower. There is no final norm; VILA1.5-40B uses the last layer without the class token."""

    def __init__(self, config: InternVitConfig):
        super().__init__(config)
        check_heads(config)
        self.num_channels = config.num_channels
        self.depth = num_layers_to_run(config.select_layer, config.num_hidden_layers)
        self.embeddings = InternVitEmbeddings(config)
        self.encoder = Encoder([InternVitLayer(config) for _ in range(config.num_hidden_layers)])
        self.reset_parameters()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images: `[N, 3, S, S]` to `[N, P, D]` in the weights' dtype.

        Raises:
            ConfigError: the pixels have another shape or an integer dtype.
        """
        check_pixels(pixels, self.num_channels, self.config.image_size)
        hidden = self.embeddings(pixels)  # [N, P, D]
        hidden = self.encoder(hidden, self.depth)
        return select_tokens(hidden, self.config.select_feature)

    def adapt_weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Resize positions `[1, P', D]` of `pretrained_image_size` to this tower's grid; others stay unchanged."""
        if name == "embeddings.position_embedding" and tensor.ndim == 3:
            return adapt_positions(tensor[0], self.config, num_prefix_tokens=1)[None]
        return tensor

    def reset_parameters(self) -> None:
        """Initialize with a normal of standard deviation 0.02, and layer scales with 0.1."""
        init_normal(self, std=0.02)
        nn.init.normal_(self.embeddings.class_embedding, std=0.02)
        nn.init.normal_(self.embeddings.position_embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, InternVitNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, InternVitLayer):
                nn.init.constant_(module.ls1, 0.1)
                nn.init.constant_(module.ls2, 0.1)
