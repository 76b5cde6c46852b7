"""The whole model."""

from typing import Literal

from pydantic import SerializeAsAny, model_validator

from vila_core import size_limits
from vila_core.config.base import Config
from vila_core.config.encoders import BasicImageEncoderConfig, BasicVideoEncoderConfig, MediaEncoderConfig
from vila_core.config.heads import GenerationHeadConfig
from vila_core.config.language import LanguageModelConfig
from vila_core.config.preprocessing import PixelConfig, PreprocessConfig, TimeTokenConfig
from vila_core.config.projectors import FOLDED_PATCHES, ProjectorConfig
from vila_core.config.rq_siglip import RQSiglipConfig
from vila_core.config.towers import ClipConfig, InternVitConfig, S2Config, SiglipConfig, VisionTowerConfig


class VilaConfig(Config):
    """A whole model.

    `chat_template` is the template that the checkpoint was trained with: a registered name, "auto" for the tokenizer's
    template, or None if the checkpoint does not say.
    `text_after_media` follows each media token in the prompt. With `splits_text_at_media` the texts between media are
    tokenized one by one, as VILA-U was trained; this changes the spaces that LLaMA's tokenizer puts first.
    """

    vision_tower: SerializeAsAny[VisionTowerConfig]
    s2: S2Config | None = None
    dynamic_s2: S2Config | None = None
    projector: SerializeAsAny[ProjectorConfig]
    image_encoder: SerializeAsAny[MediaEncoderConfig] = BasicImageEncoderConfig()
    video_encoder: SerializeAsAny[MediaEncoderConfig] = BasicVideoEncoderConfig()
    language_model: SerializeAsAny[LanguageModelConfig]
    generation_head: SerializeAsAny[GenerationHeadConfig] | None = None
    pixels: PixelConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    time_tokens: TimeTokenConfig | None = None
    chat_template: str | None = None
    text_after_media: str = ""
    splits_text_at_media: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"

    @model_validator(mode="after")
    def _widths_agree(self) -> "VilaConfig":
        scales = len(self.s2.scales) if self.s2 else len(self.dynamic_s2.scales) if self.dynamic_s2 else 1
        width = self.vision_tower.output_size * scales
        if self.projector.in_size != width:
            raise ValueError(
                f"projector in_size {self.projector.in_size} is not the vision tower's output size "
                f"{self.vision_tower.output_size} times {scales} scales"
            )
        if self.projector.out_size != self.language_model.hidden_size:
            raise ValueError(
                f"projector out_size {self.projector.out_size} is not the language model's "
                f"hidden_size {self.language_model.hidden_size}"
            )
        if self.generation_head is not None:
            self.generation_head.require_fit(self.vision_tower, self.projector, self.language_model)
        return self

    @model_validator(mode="after")
    def _scales_are_whole_tiles(self) -> "VilaConfig":
        """Static S2 cuts each scale into tiles of the tower's size; dynamic S2 into tiles of the first scale."""
        size = self.vision_tower.image_size
        for scale in self.s2.scales if self.s2 else ():
            splits = -(-scale // self.s2.max_split_size) if self.s2 else 1
            if splits * size != scale or splits**2 > size_limits.MAX_TILES:
                raise ValueError(f"S2 scale {scale} is not a few tiles of the vision tower's image_size {size}")
        for scale in self.dynamic_s2.scales if self.dynamic_s2 else ():
            if scale % size or (scale // size) ** 2 > size_limits.MAX_TILES:
                raise ValueError(f"S2 scale {scale} is not a few tiles of the vision tower's image_size {size}")
        return self

    @property
    def tokens_per_tile(self) -> int | None:
        """How many tokens one tile becomes, by arithmetic; None where the network must be asked.

        A plain ViT has one feature per patch, and the projector folds r x r of them into one token.
        """
        tower, rate = self.vision_tower, FOLDED_PATCHES.get(self.projector.name)
        is_plain = (type(tower) in (SiglipConfig, RQSiglipConfig) and tower.select_feature == "cls_patch") or (
            type(tower) in (ClipConfig, InternVitConfig) and tower.select_feature == "patch"
        )
        if not is_plain or rate is None or self.s2 is not None or self.pixels.size != tower.image_size:
            return None
        side = tower.image_size // tower.patch_size
        return (-(-side // rate)) ** 2
