"""CLIP's vision transformer (Radford et al. 2021): a class token, and a norm before the layers.

N images, P tokens (class token, then patches), D width, S side of the image in pixels.
"""

import torch
from torch import nn

from vila_core.config import ClipConfig
from vila_core.towers.positions import adapt_positions
from vila_core.towers.vit import (
    Encoder,
    EncoderLayer,
    VisionTower,
    check_heads,
    check_pixels,
    init_patch_embedding,
    num_layers_to_run,
    select_tokens,
)


class ClipEmbeddings(nn.Module):
    """A class token, patches by a strided convolution, learned positions for both: `[N, 3, S, S]` to `[N, P, D]`."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + (config.image_size // config.patch_size) ** 2, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.weight


class ClipVisionModel(nn.Module):
    """Embeddings, norm, layers and final norm, named as in the checkpoint (including the misspelled `pre_layrnorm`)."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder([EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ClipTower(VisionTower):
    """CLIP as a vision tower. Hidden state 0 comes after `pre_layrnorm`; `patch` drops the class token."""

    def __init__(self, config: ClipConfig):
        super().__init__(config)
        check_heads(config)
        self.num_channels = config.num_channels
        self.depth = num_layers_to_run(config.select_layer, config.num_hidden_layers)
        self.vision_model = ClipVisionModel(config)
        self.reset_parameters()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images: `[N, 3, S, S]` to `[N, P, D]` in the weights' dtype.

        Raises:
            ConfigError: the pixels have another shape or an integer dtype.
        """
        check_pixels(pixels, self.num_channels, self.config.image_size)
        features = self._run(pixels)
        if features is not None:
            return features
        hidden = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels))  # [N, P, D]
        hidden = self.vision_model.encoder(hidden, self.depth)
        return select_tokens(hidden, self.config.select_feature)

    def adapt_weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Resize the position embeddings `[P', D]` of `pretrained_image_size`. Other tensors are returned unchanged."""
        if name == "vision_model.embeddings.position_embedding.weight":
            return adapt_positions(tensor, self.config, num_prefix_tokens=1)
        return tensor

    def ignores_weight(self, name: str) -> bool:
        """Old checkpoints store the position indices as a buffer."""
        return name == "vision_model.embeddings.position_ids"

    def reset_parameters(self) -> None:
        """Initialize as in CLIP: normal, with a smaller deviation for projections into the residual stream."""
        width = self.config.hidden_size
        residual = (2 * len(self.vision_model.encoder.layers)) ** -0.5
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, ClipEmbeddings):
                init_patch_embedding(module.patch_embedding)
                nn.init.normal_(module.class_embedding, std=width**-0.5)
                nn.init.normal_(module.position_embedding.weight, std=width**-0.5)
            elif isinstance(module, EncoderLayer):
                attention, mlp = module.self_attn, module.mlp
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                    nn.init.normal_(linear.weight, std=width**-0.5)
                nn.init.normal_(attention.out_proj.weight, std=width**-0.5 * residual)
                nn.init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)
                nn.init.normal_(mlp.fc2.weight, std=width**-0.5 * residual)
                for linear in (
                    attention.q_proj,
                    attention.k_proj,
                    attention.v_proj,
                    attention.out_proj,
                    mlp.fc1,
                    mlp.fc2,
                ):
                    nn.init.zeros_(linear.bias)
