"""The configuration tree of a model. Every object is frozen and forbids unknown keys.

Checkpoint formats translate configs on disk into this tree; nothing else reads raw configs.
The config of a component has its registered `name`. A plugin adds its own config type by subclassing
`VisionTowerConfig`, `ProjectorConfig`, `MediaEncoderConfig`, `LanguageModelConfig` or `GenerationHeadConfig`.
"""

from collections.abc import Sized
from contextvars import ContextVar
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from vila_core import size_limits
from vila_core.errors import SettingError, first_problem

Width = Annotated[int, Field(gt=0, le=size_limits.MAX_WIDTH)]
InnerWidth = Annotated[int, Field(gt=0, le=size_limits.MAX_INNER_WIDTH)]
Layers = Annotated[int, Field(gt=0, le=size_limits.MAX_LAYERS)]
Heads = Annotated[int, Field(gt=0, le=size_limits.MAX_HEADS)]
Positions = Annotated[int, Field(gt=0, le=size_limits.MAX_CONTEXT)]
Pixels = Annotated[int, Field(gt=0, le=size_limits.MAX_IMAGE_SIZE)]
Tiles = Annotated[int, Field(gt=0, le=size_limits.MAX_TILES)]
Frames = Annotated[int, Field(gt=0, le=size_limits.MAX_VIDEO_FRAMES)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
RopeFactor = Annotated[float, Field(gt=0, le=size_limits.MAX_ROPE_FACTOR)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=size_limits.MIN_STD, le=size_limits.MAX_STD)]


def _check_list(value: object) -> object:
    if value is not None and not isinstance(value, list | tuple | set | frozenset):  # an iterator may have no end
        raise ValueError("expected a list")
    if len(cast("Sized", value or ())) > MAX_NAMES:
        raise ValueError(f"it has more than {MAX_NAMES:,} entries")
    return cast("object", value)


MAX_NAMES = 10_000
Names = Annotated[tuple[str, ...], BeforeValidator(_check_list)]
"""Texts that a user lists."""


class Config(BaseModel):
    """Base class: frozen, unknown keys are errors. Validators are built on first use, which keeps imports fast."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


_validates_settings = ContextVar("_validates_settings", default=False)


class Settings(Config):
    """Base class of settings that users write in Python: `SettingError` says what is wrong with a value.

    Settings may consist of settings. The error then names the path from the outermost, such as `data.max_length`.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        if _validates_settings.get():
            return handler(values)
        outermost = _validates_settings.set(True)
        try:
            return handler(values)
        except ValidationError as error:
            raise SettingError(cls.__name__, first_problem(error)) from None
        finally:
            _validates_settings.reset(outermost)


# ------------------------------------------------------------------------------------------------ vision towers


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


class S2Config(Config):
    """Static S2 (Shi et al. 2024, "When do we not need larger vision models?"): one image at several scales.

    `resize_output_to_scale_idx` picks the scale whose grid the merged features take.
    """

    scales: Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=size_limits.MAX_SCALES)]
    max_split_size: Pixels
    resize_output_to_scale_idx: int = 0


# ------------------------------------------------------------------------------------------------ other components


PROJECTOR_NAMES = (
    "identity",
    "linear",
    *(f"mlp{depth}x_gelu" for depth in range(1, 10)),
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)
"""The types that `vila_core.projectors` builds, with the names used by the reference."""

FOLDED_PATCHES = {
    "identity": 1, "linear": 1, "mlp2x_gelu": 1, "mlp_downsample": 2, "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3, "mlp_downsample_3x3_s2": 3, "mlp_downsample_3x3_s2_new": 3,
}  # fmt: skip
"""Projector -> r, where r x r patches become one token (see `vila_core.projectors`)."""


class ProjectorConfig(Config):
    """`in_size` is the tower's output width (times the scales under S2), `out_size` the language model's width."""

    name: str
    in_size: Annotated[int, Field(gt=0, le=size_limits.MAX_WIDTH * size_limits.MAX_SCALES)]
    out_size: Width


class MediaEncoderConfig(Config):
    """How the projected tokens of a medium become a block of the sequence. The token strings are tokenized as text."""

    name: str
    start_tokens: str | None = None
    end_tokens: str | None = "\n"


class BasicImageEncoderConfig(MediaEncoderConfig):
    name: Literal["BasicImageEncoder"] = "BasicImageEncoder"


class BasicVideoEncoderConfig(MediaEncoderConfig):
    name: Literal["BasicVideoEncoder"] = "BasicVideoEncoder"


class TSPVideoEncoderConfig(MediaEncoderConfig):
    """Temporal-spatial pooling (LongVILA): one pass over the frames per (time, height, width) pool size."""

    name: Literal["TSPVideoEncoder"] = "TSPVideoEncoder"
    pool_sizes: Annotated[
        tuple[tuple[Frames, Frames, Frames], ...], Field(min_length=1, max_length=size_limits.MAX_POOL_SIZES)
    ]
    sep_tokens: str | None = None


class RopeScaling(Config):
    """Rotary scaling of Llama 3 (`llama3`), positional interpolation (`linear`), NTK (`dynamic`) and YaRN (`yarn`)."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: RopeFactor
    original_max_position_embeddings: Positions | None = None
    low_freq_factor: RopeFactor = 1.0
    high_freq_factor: RopeFactor = 4.0
    beta_fast: RopeFactor = 32.0
    beta_slow: RopeFactor = 1.0
    attention_factor: RopeFactor | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "RopeScaling":
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor {self.low_freq_factor} is not below {self.high_freq_factor}")
        if self.rope_type == "yarn" and self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow {self.beta_slow} is not below beta_fast {self.beta_fast}")
        return self


class LanguageModelConfig(Config):
    """The fields that every language model has. `max_length` is the context in tokens, including media."""

    name: str
    hidden_size: Width
    vocab_size: Annotated[int, Field(gt=0, le=size_limits.MAX_VOCABULARY)]
    max_length: Positions


class DecoderConfig(LanguageModelConfig):
    """The native decoder: Qwen2, Qwen2.5, Qwen3, Llama 1-3, Mistral, Yi.

    `architecture` is the model type in transformers.
    """

    name: Literal["decoder"] = "decoder"
    architecture: Literal["qwen2", "qwen3", "llama", "mistral"]
    intermediate_size: InnerWidth
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Annotated[int, Field(gt=0, le=size_limits.MAX_HEAD_DIM, multiple_of=2)]
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Annotated[float, Field(gt=1, le=size_limits.MAX_ROPE_THETA)] = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: Positions
    sliding_window: Positions | None = None
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> "DecoderConfig":
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic" and self.head_dim == 2:
            raise ValueError("dynamic rotary scaling needs a head_dim of more than 2")
        return self


class TransformersConfig(LanguageModelConfig):
    """Any `AutoModelForCausalLM` of transformers; `hf_config` is its config as a dict. No code is loaded from it."""

    name: Literal["transformers"] = "transformers"
    hf_config: dict[str, object]


class GenerationHeadConfig(Config):
    """A head that draws: see `vila_core.generation.heads`. `name` is a registered component."""

    name: str

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
    knows_empty_prompt: bool = True
    """Whether it was trained with prompts left out, which guidance needs."""

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


# ------------------------------------------------------------------------------------------------ preprocessing


class PixelConfig(Config):
    """How a PIL image becomes a normalized tensor: resize (and center-crop for CLIP), u8/255, (x - mean)/std."""

    size: Pixels
    resize: Literal["square", "shortest_edge"] = "square"
    crop: bool = False
    mean: tuple[Mean, Mean, Mean] = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    can_pad: bool = True
    """False if the preprocessor defines no mean color for `image_aspect_ratio: pad` (InternViT)."""


class PreprocessConfig(Config):
    """How images and videos become tiles. `vila.load` accepts these fields as overrides.

    `tile_all` tiles every image of a prompt (the reference tiles an image only if it is the only one).
    `video_as_images` gives video frames to the image encoder, with one `<image>` per frame.
    """

    image_aspect_ratio: Literal["resize", "dynamic", "dynamic_s2", "pad", "other"] = "resize"
    min_tiles: Tiles = 1
    max_tiles: Tiles = 12
    video_max_tiles: Tiles = 1
    num_video_frames: Frames = 8
    fps: Annotated[float, Field(ge=0, le=size_limits.MAX_FPS)] = 0.0
    s2_scales: Annotated[tuple[Pixels, ...], Field(max_length=size_limits.MAX_SCALES)] = ()
    tile_all: bool = False
    video_as_images: bool = False

    @model_validator(mode="after")
    def _tiles_in_order(self) -> "PreprocessConfig":
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is greater than max_tiles {self.max_tiles}")
        if self.image_aspect_ratio == "dynamic_s2" and len(self.s2_scales) < 2:
            raise ValueError("image_aspect_ratio 'dynamic_s2' needs at least two s2_scales")
        return self


class TimeTokenConfig(Config):
    """Time tokens of a video model: `count` tokens spread over the duration of a video, written as `format`."""

    count: Annotated[int, Field(gt=0, le=size_limits.MAX_TIME_TOKENS)]
    format: str = "<t{t}>"


# ------------------------------------------------------------------------------------------------ the model


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
