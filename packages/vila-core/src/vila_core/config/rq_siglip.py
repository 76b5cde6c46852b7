"""VILA-U's tower: SigLIP with a residual quantizer, and the decoder of its codes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_core import size_limits
from vila_core.config.base import Config, Pixels
from vila_core.config.towers import ViTConfig


class PixelDecoderConfig(Config):
    """The convolutional decoder of VQGAN (Esser et al. 2021), which makes an image of a grid of code embeddings.

    The first entry of `channel_multipliers` is the finest level; the decoder starts at the last one. Blocks have
    attention at the levels whose side is in `attention_resolutions`, counted from `resolution` at the finest.
    `latent_grid` is the grid that code embeddings are resized to first, None for none.
    """

    z_channels: Annotated[int, Field(gt=0, le=size_limits.MAX_DECODER_CHANNELS)]
    channels: Annotated[int, Field(gt=0, le=size_limits.MAX_DECODER_CHANNELS)]
    channel_multipliers: Annotated[
        tuple[Annotated[int, Field(gt=0, le=size_limits.MAX_DECODER_CHANNELS)], ...],
        Field(min_length=1, max_length=size_limits.MAX_DECODER_LEVELS),
    ]
    num_res_blocks: Annotated[int, Field(ge=0, le=size_limits.MAX_RESIDUAL_BLOCKS)]
    attention_resolutions: Annotated[tuple[Pixels, ...], Field(max_length=size_limits.MAX_DECODER_LEVELS)] = ()
    resolution: Pixels
    latent_grid: tuple[Pixels, Pixels] | None = None

    @property
    def scale(self) -> int:
        """Pixels per grid position along a side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @model_validator(mode="after")
    def _groups_divide(self) -> "PixelDecoderConfig":
        for multiplier in self.channel_multipliers:
            width = self.channels * multiplier
            if width % 32 or width > size_limits.MAX_DECODER_CHANNELS:
                raise ValueError(
                    f"a level has {width} channels; expected a multiple of 32 (group norm) "
                    f"of at most {size_limits.MAX_DECODER_CHANNELS}"
                )
        return self


class RQSiglipConfig(ViTConfig):
    """SigLIP whose features are quantized residually (RQ-VAE, Lee et al. 2022), and a decoder of the codes (VILA-U).

    `code_depth` codes stand for one position of the grid, each out of `codebook_size`. With `shared_codebook` all
    depths use one codebook. `keeps_ema` keeps the running averages that codebooks are trained with.
    """

    name: Literal["rq-siglip"] = "rq-siglip"
    hidden_act: str = "gelu_pytorch_tanh"
    use_head: bool = False
    codebook_size: Annotated[int, Field(gt=0, le=size_limits.MAX_CODEBOOK)]
    code_depth: Annotated[int, Field(gt=0, le=size_limits.MAX_CODE_DEPTH)]
    shared_codebook: bool = True
    keeps_ema: bool = False
    decoder: PixelDecoderConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def decoded_size(self) -> tuple[int, int]:
        """Height and width of decoded images in pixels."""
        rows, columns = self.decoder.latent_grid or self.grid
        return rows * self.decoder.scale, columns * self.decoder.scale

    @model_validator(mode="after")
    def _decodes_to_an_image(self) -> "RQSiglipConfig":
        if max(self.decoded_size) > size_limits.MAX_IMAGE_SIZE:
            raise ValueError(
                f"the decoder makes images of {self.decoded_size} pixels; the limit is {size_limits.MAX_IMAGE_SIZE}"
            )
        return self
