"""VILA-U's tower (Wu et al. 2024, arXiv 2409.04429): what a model sees and what it draws are the same codes.

N images, S side of an image in pixels, h x w grid of positions, P = h · w, C width, D codes of a position
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vila_core.config import RQSiglipConfig, SiglipConfig
from vila_core.errors import ConfigError
from vila_core.towers.rq_siglip.decoder import PixelDecoder
from vila_core.towers.rq_siglip.quantizer import ResidualQuantizer
from vila_core.towers.siglip import SiglipTower
from vila_core.towers.vit import VisionTower

IMAGES_AT_ONCE = 8
"""Images that are decoded together, which bounds the memory for activations at full resolution."""

_UNUSED = ("siglip_model.text_model.", "siglip_model.logit_", "text_model.", "logit_")
"""SigLIP's text half."""


class RQSiglipTower(VisionTower):
    """SigLIP, a residual quantizer over its second-to-last layer, and a VQGAN decoder of the codes."""

    config: RQSiglipConfig

    def __init__(self, config: RQSiglipConfig):
        super().__init__(config)
        self.siglip_model = SiglipTower(_siglip_config(config))
        self.depth = self.siglip_model.depth
        self.quantizer = ResidualQuantizer(
            config.codebook_size,
            config.code_depth,
            config.hidden_size,
            shared=config.shared_codebook,
            keeps_ema=config.keeps_ema,
        )
        self.post_quant_conv = nn.Conv2d(config.hidden_size, config.decoder.z_channels, 1)
        self.decoder = PixelDecoder(config.decoder)
        self.reset_parameters()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes, (h, w)."""
        return self.config.grid

    @property
    def code_depth(self) -> int:
        """D."""
        return self.config.code_depth

    @property
    def codebook_size(self) -> int:
        """K: codes are 0 … K - 1."""
        return self.config.codebook_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images: `[N, 3, S, S]` -> quantized features `[N, P, C]`, which the projector reads.

        Gradients pass the quantizer straight through.

        Raises:
            ConfigError: the pixels have another shape or an integer dtype.
        """
        features = self.features(pixels)
        quantized = self.quantizer.embed(self.quantizer.encode(features.detach()))
        return features + (quantized - features).detach()

    def features(self, pixels: Tensor) -> Tensor:
        """`[N, 3, S, S]` -> SigLIP's features before quantization, `[N, P, C]`."""
        return self.siglip_model(pixels)

    def encode(self, pixels: Tensor) -> Tensor:
        """`[N, 3, S, S]` -> codes int64 `[N, h, w, D]`."""
        return self.quantizer.encode(self.features(pixels)).unflatten(1, self.grid)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes `[..., D]` -> the sums of their embeddings, `[..., C]`."""
        return self.quantizer.embed(codes)

    def cumulative(self, codes: Tensor) -> Tensor:
        """Codes `[..., D]` -> the sums of the first 1 … D embeddings, `[..., D, C]`."""
        return self.quantizer.cumulative(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `[N, h, w, D]` -> pixels `[N, 3, S', S']`, about -1 to 1 and not clamped. S' is `decoded_size`.

        Raises:
            ConfigError: the codes have another shape, are not whole numbers, or lie outside the codebook.
        """
        self.check_codes(codes)
        return torch.cat([self.decode_features(self.embed_codes(part)) for part in codes.split(IMAGES_AT_ONCE)])

    def decode_features(self, quantized: Tensor) -> Tensor:
        """Quantized features `[N, h, w, C]` -> pixels `[N, 3, S', S']`."""
        z = quantized.permute(0, 3, 1, 2)
        if self.config.decoder.latent_grid is not None:
            z = F.interpolate(z.float(), size=self.config.decoder.latent_grid, mode="bilinear").to(quantized.dtype)
        return self.decoder(self.post_quant_conv(z))

    def check_codes(self, codes: Tensor) -> None:
        """Raise `ConfigError` unless `codes` are `[N, h, w, D]` whole numbers below K. Waits for the device."""
        expected = (*self.grid, self.code_depth)
        if codes.ndim != 4 or tuple(codes.shape[1:]) != expected or not len(codes):
            height, width, depth = expected
            raise ConfigError(
                f"Codes have the shape {list(codes.shape)}; this tower expects [N, {height}, {width}, {depth}]."
            )
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ConfigError(f"Codes are {codes.dtype}; expected whole numbers from 0 to {self.codebook_size - 1}.")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise ConfigError(
                f"Codes go from {low} to {high}; this tower has codes 0 to {self.codebook_size - 1}. "
                "Were they made with another model?"
            )

    def adapt_weight(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor unchanged: the codes belong to one resolution."""
        return tensor

    def ignores_weight(self, name: str) -> bool:
        """SigLIP's text half is stored but not needed, nor are averages of training unless they are kept."""
        return name.startswith(_UNUSED) or name.endswith((".embed_ema", ".cluster_size_ema"))

    def reset_parameters(self) -> None:
        """Initialize SigLIP as usual, codebooks with a small normal, and the decoder as PyTorch does."""
        self.siglip_model.reset_parameters()
        for depth in range(len(self.quantizer.codebooks)):
            codebook = self.quantizer.codebook(depth)
            nn.init.normal_(codebook.weight, std=self.config.hidden_size**-0.5)
            with torch.no_grad():
                codebook.weight[codebook.size].zero_()
                if self.config.keeps_ema:
                    codebook.get_buffer("embed_ema").copy_(codebook.embeddings)
                    codebook.get_buffer("cluster_size_ema").fill_(1.0)
        for root in (self.post_quant_conv, self.decoder):
            for module in root.modules():
                if isinstance(module, nn.Conv2d | nn.GroupNorm):
                    module.reset_parameters()


def _siglip_config(config: RQSiglipConfig) -> SiglipConfig:
    return SiglipConfig(
        **config.model_dump(include=SiglipConfig.model_fields.keys() - {"name"}),
    )
