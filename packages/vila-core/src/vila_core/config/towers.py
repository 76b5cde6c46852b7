"""Vision towers, and S2, which shows them one image at several scales."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_core import size_limits
from vila_core.config.base import Config, Epsilon, Heads, InnerWidth, Layers, Pixels, Width


class VisionTowerConfig(Config):
    """The fields that every tower has. Sizes are in pixels; `select_layer` indexes hidden states (0 is the embedding).

    `pretrained_image_size` is the image size of the checkpoint's position embeddings if it differs from `image_size`.
    The loader then interpolates them.
    """

    name: str
    image_size: Pixels
    pretrained_image_size: Pixels | None = None
    patch_size: Annotated[int, Field(gt=0, le=size_limits.MAX_PATCH_SIZE)]
    hidden_size: Width
    select_layer: int = -2
    select_feature: Literal["patch", "cls_patch"] = "cls_patch"

    @property
    def output_size(self) -> int:
        """Width of the features that the projector receives."""
        return self.hidden_size

    @model_validator(mode="after")
    def _patches_fit(self) -> "VisionTowerConfig":
        patches = (self.image_size // self.patch_size) ** 2
        if not 0 < patches <= size_limits.MAX_PATCHES:
            raise ValueError(
                f"image_size {self.image_size} and patch_size {self.patch_size} make {patches} patches; "
                f"expected 1 to {size_limits.MAX_PATCHES}"
            )
        return self


class ViTConfig(VisionTowerConfig):
    """A plain vision transformer."""

    intermediate_size: InnerWidth
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_channels: Annotated[int, Field(gt=0, le=size_limits.MAX_CHANNELS)] = 3
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-6


class SiglipConfig(ViTConfig):
    """SigLIP: no class token, learned positions, tanh-GELU.

    `use_head` keeps the (unused) weights of the pooling head.
    """

    name: Literal["siglip"] = "siglip"
    hidden_act: str = "gelu_pytorch_tanh"
    use_head: bool = False


class ClipConfig(ViTConfig):
    """CLIP: class token, a norm before the blocks, quick GELU."""

    name: Literal["clip"] = "clip"
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    select_feature: Literal["patch", "cls_patch"] = "patch"


class InternVitConfig(ViTConfig):
    """InternViT-6B: class token, RMSNorm, q/k norm over the full width, layer scale."""

    name: Literal["intern_vit"] = "intern_vit"
    qkv_bias: bool = False
    qk_normalization: bool = True
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    select_layer: int = -1
    select_feature: Literal["patch", "cls_patch"] = "patch"


class RadioConfig(ViTConfig):
    """RADIO: timm-style blocks behind a patch generator with cropped position embeddings and summary tokens.

    `final_norm` and `normalize_features` say whether the checkpoint has `model.norm` and a feature normalizer. Most
    checkpoints have neither.
    """

    name: Literal["radio"] = "radio"
    max_image_size: Annotated[int, Field(gt=0, le=2 * size_limits.MAX_IMAGE_SIZE)] = 2048
    num_summary_tokens: Annotated[int, Field(gt=0, le=size_limits.MAX_TOKENS_PER_TOWER)] = 3
    num_registers: Annotated[int, Field(ge=0, le=size_limits.MAX_TOKENS_PER_TOWER)] = 0
    final_norm: bool = False
    normalize_features: bool = False
    select_layer: int = -1
    select_feature: Literal["patch", "cls_patch"] = "patch"


class TimmConfig(VisionTowerConfig):
    """Any timm vision transformer, by its name in timm (needs `vila-core[timm]`)."""

    name: Literal["timm"] = "timm"
    model_name: str
    select_feature: Literal["patch", "cls_patch"] = "patch"


class S2Config(Config):
    """Static S2 (Shi et al. 2024, "When do we not need larger vision models?"): one image at several scales.

    `resize_output_to_scale_idx` picks the scale whose grid the merged features take.
    """

    scales: Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=size_limits.MAX_SCALES)]
    max_split_size: Pixels
    resize_output_to_scale_idx: int = 0
