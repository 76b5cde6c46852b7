"""SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"): a ViT without a class token.

N images, P patches, D width, S side of the image in pixels.
"""

import torch
from torch import nn

from vila_core.config import SiglipConfig
from vila_core.errors import ConfigError
from vila_core.towers.positions import adapt_positions
from vila_core.towers.vit import (
    Encoder,
    EncoderLayer,
    Mlp,
    VisionTower,
    check_heads,
    check_pixels,
    init_patch_embedding,
    num_layers_to_run,
    select_tokens,
)


class SiglipEmbeddings(nn.Module):
    """Patches by a strided convolution, plus learned positions: `[N, 3, S, S]` to `[N, P, D]`."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        # Contiguous, or else all layers compute on rows with gaps between their numbers.
        return (patches + self.position_embedding.weight).contiguous()


class AttentionPoolingHead(nn.Module):
    """One learned query attends to all patches: `[N, P, D]` to `[N, D]`."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        pooled = self.attention(self.probe.expand(len(hidden), -1, -1), hidden, hidden, need_weights=False)[0]
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class SiglipVisionModel(nn.Module):
    """Embeddings, layers, final norm and pooling head, named as in the checkpoint."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = Encoder([EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = AttentionPoolingHead(config) if config.use_head else None


class SiglipTower(VisionTower):
    """SigLIP as a vision tower. Features are a hidden state before the final norm; VILA uses the second-to-last."""

    def __init__(self, config: SiglipConfig):
        super().__init__(config)
        check_heads(config)
        self.num_channels = config.num_channels
        self.num_layers = config.num_hidden_layers
        self.depth = num_layers_to_run(config.select_layer, config.num_hidden_layers)
        self.vision_model = SiglipVisionModel(config)
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
        hidden = self.vision_model.embeddings(pixels)  # [N, P, D]
        hidden = self.vision_model.encoder(hidden, self.depth)
        return select_tokens(hidden, self.config.select_feature)

    def pool(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed images with SigLIP's pooling head: `[N, 3, S, S]` to `[N, D]`. Raises `ConfigError` without a head."""
        if self.vision_model.head is None:
            raise ConfigError("This SigLIP tower has no pooling head (use_head is false in its config).")
        check_pixels(pixels, self.num_channels, self.config.image_size)
        hidden = self.vision_model.encoder(self.vision_model.embeddings(pixels), self.num_layers)
        return self.vision_model.head(self.vision_model.post_layernorm(hidden))

    def adapt_weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Resize the position embeddings `[P', D]` of `pretrained_image_size`. Other tensors are returned unchanged."""
        if name == "vision_model.embeddings.position_embedding.weight":
            return adapt_positions(tensor, self.config, num_prefix_tokens=0)
        return tensor

    def ignores_weight(self, name: str) -> bool:
        """Old checkpoints store the position indices as a buffer."""
        return name == "vision_model.embeddings.position_ids"

    def reset_parameters(self) -> None:
        """Initialize as in big_vision: Xavier linears, LeCun patches, positions with standard deviation D^-0.5."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
                nn.init.zeros_(module.in_proj_bias)
            elif isinstance(module, SiglipEmbeddings):
                init_patch_embedding(module.patch_embedding)
                nn.init.normal_(module.position_embedding.weight, std=module.position_embedding.embedding_dim**-0.5)
            elif isinstance(module, AttentionPoolingHead):
                nn.init.xavier_uniform_(module.probe)
        for module in self.modules():
            if isinstance(module, Mlp):
                nn.init.normal_(module.fc1.bias, std=1e-6)
                nn.init.normal_(module.fc2.bias, std=1e-6)
