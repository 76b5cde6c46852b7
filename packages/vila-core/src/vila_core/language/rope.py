"""Rotary position embedding (Su et al. 2021, RoFormer) and its scalings.

B batch, T tokens, H heads, D_h head width, F = D_h / 2 frequencies
"""

import math

import torch
from torch import nn

from vila_core.config import DecoderConfig, RopeScaling


class Rotary(nn.Module):
    """Positions -> cosines and sines for `rotate`.

    The frequencies are neither parameters nor buffers: they depend on the config alone, are not in checkpoints, and
    must stay fp32 and real when the model is built on the meta device or cast.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.scale = attention_scale(config.rope_scaling)
        self._frequencies = inverse_frequencies(config)

    def forward(
        self, positions: torch.Tensor, dtype: torch.dtype, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin `[B, 1, T, D_h]` in `dtype`, computed in fp32, for `positions` `[B, T]`.

        `lengths` `[B]` are the tokens of each row without padding, which dynamic scaling does not count.
        """
        with torch.no_grad():
            scaling = self.config.rope_scaling
            if scaling is not None and scaling.rope_type == "dynamic":
                if lengths is not None:
                    positions = torch.minimum(positions, lengths[:, None] - 1)
                frequencies = dynamic_frequencies(self.config, scaling.factor, positions)  # [B, 1, F]
            else:
                frequencies = self._frequencies_on(positions.device)  # [F]
            angles = positions[..., None].float() * frequencies  # [B, T, F]
            angles = torch.cat((angles, angles), dim=-1)[:, None]  # [B, 1, T, D_h]
            return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)

    def _frequencies_on(self, device: torch.device) -> torch.Tensor:
        if self._frequencies.device != device:
            # Outside inference mode: the copy is kept, and training may use it later.
            with torch.inference_mode(False):
                self._frequencies = self._frequencies.to(device)
        return self._frequencies


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `x` `[B, H, T, D_h]`; the two halves of a head are the real and imaginary parts."""
    real, imaginary = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-imaginary, real), dim=-1) * sin


def inverse_frequencies(config: DecoderConfig) -> torch.Tensor:
    """Return the frequencies `[F]` in radians per token, fp32 on the CPU, with the config's scaling applied.

    For `dynamic` these are the unscaled ones, which hold up to `max_position_embeddings`.
    """
    frequencies = 1.0 / _wavelengths(config)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    original_length = scaling.original_max_position_embeddings or config.max_position_embeddings
    if scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling, original_length)
    return _yarn(config, scaling, original_length)


def attention_scale(scaling: RopeScaling | None) -> float:
    """Return the factor on cos and sin: YaRN's temperature (Peng et al. 2023, eq. 22), else 1."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def dynamic_frequencies(config: DecoderConfig, factor: float, positions: torch.Tensor) -> torch.Tensor:
    """Return `[B, 1, F]`: NTK-aware scaling whose base grows with the length reached, row by row."""
    length = (positions.amax(dim=-1) + 1).clamp(min=config.max_position_embeddings)  # [B]
    growth = factor * length / config.max_position_embeddings - (factor - 1)
    base = config.rope_theta * growth ** (config.head_dim / (config.head_dim - 2))
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    return 1.0 / base[:, None, None] ** exponents


def _wavelengths(config: DecoderConfig) -> torch.Tensor:
    """Tokens per radian `[F]`, unscaled."""
    return config.rope_theta ** (torch.arange(0, config.head_dim, 2, device="cpu").float() / config.head_dim)


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling, original_length: int) -> torch.Tensor:
    """Llama 3.1: slow frequencies are divided by `factor`, fast ones kept, those between blended."""
    turns = frequencies * original_length / (2 * math.pi)  # over the original context
    keep = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _yarn(config: DecoderConfig, scaling: RopeScaling, original_length: int) -> torch.Tensor:
    """YaRN: as llama3 in spirit, but the blend is linear in the frequency's index (Peng et al. 2023, section 3.2)."""

    def index_of(turns: float) -> float:
        """The (fractional) index of the frequency that turns so often over the original context."""
        return config.head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    first = max(math.floor(index_of(scaling.beta_fast)), 0)
    last = min(math.ceil(index_of(scaling.beta_slow)), config.head_dim - 1)
    span = max(last - first, 0.001)
    interpolate = ((torch.arange(config.head_dim // 2, device="cpu") - first) / span).clamp(0, 1)
    frequencies = 1.0 / _wavelengths(config)
    return frequencies / scaling.factor * interpolate + frequencies * (1 - interpolate)
