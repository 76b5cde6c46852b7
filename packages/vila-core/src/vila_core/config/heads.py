"""Generation heads."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_core import size_limits
from vila_core.config.base import Config, Frames, Heads, Layers, Pixels, Width
from vila_core.config.language import LanguageModelConfig
from vila_core.config.projectors import ProjectorConfig
from vila_core.config.rq_siglip import RQSiglipConfig
from vila_core.config.towers import VisionTowerConfig


class GenerationHeadConfig(Config):
    """A head that draws: see `vila_core.generation.heads`. `name` is a registered component.

    `knows_empty_prompt` says whether it was trained with prompts left out too, which guidance needs.
    """

    name: str
    knows_empty_prompt: bool = True

    def require_fit(
        self, tower: VisionTowerConfig, projector: ProjectorConfig, language_model: LanguageModelConfig
    ) -> None:
        """Raise `ValueError` if the head cannot work with these parts. The base class accepts all."""


class DepthTransformerConfig(GenerationHeadConfig):
    """A small causal transformer over the codes of one image position (RQ-Transformer; `rqtransformer` of VILA-U).

    `hidden_size` is the language model's width. The start tokens switch the language model to drawing: an image, or, if
    there is a `video_start_token`, a video of `video_frames` frames. Dropout is used in training only.
    """

    name: Literal["depth-transformer"] = "depth-transformer"
    hidden_size: Width
    embed_dim: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    code_width: Width
    codebook_size: Annotated[int, Field(gt=0, le=size_limits.MAX_CODEBOOK)]
    code_depth: Annotated[int, Field(gt=0, le=size_limits.MAX_CODE_DEPTH)]
    grid: tuple[Pixels, Pixels]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    image_start_token: str = "<im_start>"
    image_end_token: str = "<im_end>"
    video_start_token: str | None = "<vi_start>"
    video_end_token: str | None = "<vi_end>"
    video_frames: Frames = 8

    def require_fit(
        self, tower: VisionTowerConfig, projector: ProjectorConfig, language_model: LanguageModelConfig
    ) -> None:
        """Raise `ValueError` unless the codes are the tower's, one position per token of the projector."""
        if not isinstance(tower, RQSiglipConfig):
            raise ValueError(f"the generation head needs a tower with codes (rq-siglip), not '{tower.name}'")
        if projector.name.startswith("mlp_downsample"):
            raise ValueError(f"projector '{projector.name}' folds positions; the generation head needs one token each")
        pairs = {
            "code_width": (self.code_width, tower.hidden_size),
            "codebook_size": (self.codebook_size, tower.codebook_size),
            "code_depth": (self.code_depth, tower.code_depth),
            "grid": (self.grid, tower.grid),
        }
        for field, (own, expected) in pairs.items():
            if own != expected:
                raise ValueError(f"{field} of the generation head is {own}, but the vision tower's is {expected}")
        if self.hidden_size != language_model.hidden_size:
            raise ValueError(
                f"hidden_size of the generation head is {self.hidden_size}, "
                f"but the language model's is {language_model.hidden_size}"
            )

    @model_validator(mode="after")
    def _heads_divide(self) -> "DepthTransformerConfig":
        if self.embed_dim % self.num_attention_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self
