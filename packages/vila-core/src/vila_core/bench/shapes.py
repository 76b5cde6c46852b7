"""The shapes of released models, to measure speed without their weights."""

from vila_core.config import (
    DecoderConfig,
    InternVitConfig,
    PixelConfig,
    PreprocessConfig,
    ProjectorConfig,
    SiglipConfig,
    VilaConfig,
)
from vila_core.errors import ConfigError, unknown_name

SIGLIP_SO400M_448 = SiglipConfig(
    image_size=448,
    patch_size=14,
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
)
INTERN_VIT_6B_448 = InternVitConfig(
    image_size=448,
    patch_size=14,
    hidden_size=3200,
    intermediate_size=12_800,
    num_hidden_layers=45,
    num_attention_heads=25,
)

_QWEN2 = {
    "architecture": "qwen2", "attention_bias": True, "rope_theta": 1e6, "max_position_embeddings": 32_768,
    "max_length": 32_768, "vocab_size": 151_648,
}  # fmt: skip
LANGUAGE_SHAPES: dict[str, DecoderConfig] = {
    name: DecoderConfig.model_validate(sizes)
    for name, sizes in {
        "nvila-0.5b": _QWEN2 | {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True,
        },
        "nvila-3b": _QWEN2 | {
            "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True,
        },
        "nvila-8b": _QWEN2 | {
            "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "head_dim": 128,
        },
        "vila1.5-40b": {
            "architecture": "llama", "rope_theta": 5e6, "max_position_embeddings": 4096, "max_length": 4096,
            "vocab_size": 64_000, "hidden_size": 7168, "intermediate_size": 20_480, "num_hidden_layers": 60,
            "num_attention_heads": 56, "num_key_value_heads": 8, "head_dim": 128,
        },
    }.items()
}  # fmt: skip
"""Qwen2-0.5B, Qwen2.5-3B, Qwen2-7B and Yi-34B."""

TITLES = {
    "nvila-0.5b": "NVILA-Lite-0.5B",
    "nvila-3b": "NVILA-Lite-3B",
    "nvila-8b": "NVILA-Lite-8B",
    "vila1.5-40b": "VILA-1.5-40B",
}


def language_shape(name: str) -> DecoderConfig:
    """Return the language model of the shapes called `name`. Raises `ConfigError` if unknown."""
    if name not in LANGUAGE_SHAPES:
        raise ConfigError(unknown_name("model shapes", name, LANGUAGE_SHAPES))
    return LANGUAGE_SHAPES[name]


def model_shape(name: str, dtype: str) -> VilaConfig:
    """Return the config of a whole model. Raises `ConfigError` if the name is unknown.

    An image of 448 × 448 pixels is one tile: 121 tokens of NVILA-Lite, 256 of VILA-1.5-40B.
    """
    decoder = language_shape(name)
    is_nvila = name.startswith("nvila")
    tower = SIGLIP_SO400M_448 if is_nvila else INTERN_VIT_6B_448
    projector = "mlp_downsample_3x3_fix" if is_nvila else "mlp_downsample"
    return VilaConfig(
        vision_tower=tower,
        projector=ProjectorConfig(name=projector, in_size=tower.hidden_size, out_size=decoder.hidden_size),
        language_model=decoder,
        pixels=PixelConfig(size=448),
        preprocess=PreprocessConfig(image_aspect_ratio="dynamic" if is_nvila else "resize"),
        dtype=dtype,  # pyright: ignore[reportArgumentType]
    )
