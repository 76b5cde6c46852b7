"""The vision tower's config: transformers' JSON and its preprocessor's <-> our tower config and `PixelConfig`."""

from typing import TypeVar

from pydantic import ValidationError

from vila_core.checkpoint.configs.plausible import check_layers
from vila_core.checkpoint.configs.radio import is_radio, radio_config
from vila_core.checkpoint.json_files import Section
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.config import (
    ClipConfig,
    Config,
    InternVitConfig,
    PixelConfig,
    RadioConfig,
    SiglipConfig,
    VisionTowerConfig,
    ViTConfig,
)
from vila_core.errors import CheckpointError, first_problem, unknown_name
from vila_core.plugins.hookspecs import Component
from vila_core.plugins.registry import Registry
from vila_core.size_limits import MAX_IMAGE_SIZE

ConfigT = TypeVar("ConfigT", bound=Config)

MODEL_TYPES = {
    "siglip_vision_model": "siglip",
    "clip_vision_model": "clip",
    "intern_vit_6b": "intern_vit",
    "radio": "radio",
}
"""transformers' model types -> our names of towers. A plugin's tower writes its own name as the model type."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for its filters."""


def read_tower_config(
    raw: Section, root: Section, weights: dict[str, TensorEntry], towers: Registry[Component]
) -> VisionTowerConfig:
    """Translate `vision_tower/config.json` (`raw`) and the root config's feature selection; `weights` are the tower's.

    Raises:
        CheckpointError: a tower that no registry knows, or a value that is missing, of the wrong type or out of range.
    """
    if is_radio(raw):
        fields = radio_config(raw, weights)
        fields["select_feature"] = root.choice("mm_vision_select_feature", ("patch", "cls_patch"), "patch")
        return _validated(RadioConfig, fields, raw)
    model_type = raw.string("model_type")
    name = MODEL_TYPES.get(model_type, model_type)
    if name not in towers:
        raise CheckpointError(
            f"{raw.source}: {unknown_name('vision tower', model_type, {*MODEL_TYPES, *towers.names()})}"
        )
    if "vision_config" in raw:  # a complete CLIP or InternVL config, of which the tower is a part
        raw = raw.section("vision_config")
    config_type = towers.get(name).config_type
    if name not in MODEL_TYPES.values():
        fields = {key: value for key, value in raw.values.items() if key in config_type.model_fields}
        fields["name"] = name
    else:
        fields = _vit_fields(raw)
        if name == "siglip":
            has_head = any(key.startswith("vision_model.head.") for key in weights)
            fields["use_head"] = raw.boolean("vision_use_head", has_head)
        if name == "intern_vit":
            fields |= {
                "qkv_bias": raw.boolean("qkv_bias", False),
                "qk_normalization": raw.boolean("qk_normalization", True),
                "norm_type": raw.choice("norm_type", ("rms_norm", "layer_norm"), "rms_norm"),
            }
    if "mm_vision_select_layer" in root:
        fields["select_layer"] = root.integer("mm_vision_select_layer", minimum=None)
    if "mm_vision_select_feature" in root:
        fields["select_feature"] = root.choice("mm_vision_select_feature", ("patch", "cls_patch"))
    config = _validated(config_type, fields, raw)
    assert isinstance(config, VisionTowerConfig), config_type
    check_layers(raw, weights)
    return _at_resolution(config, root)


def _vit_fields(raw: Section) -> dict[str, object]:
    fields: dict[str, object] = {
        key: raw.integer(key)
        for key in (
            "image_size",
            "patch_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
    }
    if "num_channels" in raw:
        fields["num_channels"] = raw.integer("num_channels")
    if "hidden_act" in raw:
        fields["hidden_act"] = raw.string("hidden_act")
    if "layer_norm_eps" in raw:
        fields["layer_norm_eps"] = raw.number("layer_norm_eps", minimum=0.0)
    return fields


def _at_resolution(config: VisionTowerConfig, root: Section) -> VisionTowerConfig:
    """Apply `vision_resolution`: the tower runs at that size, with interpolated position embeddings."""
    resolution = root.integer("vision_resolution", -1, minimum=-1)
    if resolution in (-1, 0, config.image_size):
        return config
    if resolution > MAX_IMAGE_SIZE:
        raise CheckpointError(
            f"{root.source}: 'vision_resolution' is {resolution}; expected at most {MAX_IMAGE_SIZE} pixels."
        )
    fields: dict[str, object] = {
        **config.model_dump(),
        "image_size": resolution,
        "pretrained_image_size": config.image_size,
    }
    return _validated(type(config), fields, root)


def _validated(config_type: type[ConfigT], fields: dict[str, object], raw: Section) -> ConfigT:
    try:
        return config_type.model_validate(fields)
    except ValidationError as error:
        problem = first_problem(error).with_value
        raise CheckpointError(f"{raw.source} does not describe a vision tower: {problem}") from None


def read_pixel_config(preprocessor: Section | None, tower: VisionTowerConfig, size: int | None) -> PixelConfig:
    """Translate `preprocessor_config.json`. `size` is the S2 scale that images are resized to, None without S2.

    InternViT's preprocessor states no statistics: it is always ImageNet's, and padding has no colour to pad with.

    Raises:
        CheckpointError: no preprocessor config where one is needed, or one that leaves out resizing or normalising.
    """
    resized = tower.pretrained_image_size is not None
    if isinstance(tower, InternVitConfig):
        return PixelConfig(size=size or tower.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, can_pad=False)
    if isinstance(tower, RadioConfig) and preprocessor is None:
        return PixelConfig(size=size or tower.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample="bilinear")
    if preprocessor is None:
        raise CheckpointError(
            f"The vision tower '{tower.name}' has no preprocessor_config.json. "
            "Copy it from the tower's original checkpoint."
        )
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not preprocessor.boolean(step, True):
            raise CheckpointError(f"{preprocessor.source}: '{step}' is false, which is not supported.")
    if abs(preprocessor.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise CheckpointError(
            f"{preprocessor.source}: 'rescale_factor' is {preprocessor.values['rescale_factor']}; expected 1/255."
        )
    resample = preprocessor.integer("resample", 2 if isinstance(tower, RadioConfig) else 3, minimum=0)
    if resample not in _RESAMPLE:
        raise CheckpointError(f"{preprocessor.source}: 'resample' is {resample}; expected 2 (bilinear) or 3 (bicubic).")
    default_mean, default_std = _default_statistics(tower)
    crop = preprocessor.boolean("do_center_crop", False) and "crop_size" in preprocessor
    stated = _side(preprocessor, "crop_size" if crop else "size")
    if crop and (edge := _side(preprocessor, "size")) != stated:
        raise CheckpointError(f"{preprocessor.source}: resizes to {edge} but crops to {stated}; expected equal sizes.")
    try:
        return PixelConfig.model_validate(
            {
                "size": size or (tower.image_size if resized else stated),
                "resize": "shortest_edge" if _is_shortest_edge(preprocessor) else "square",
                "crop": crop,
                "mean": preprocessor.numbers("image_mean", 3) if "image_mean" in preprocessor else default_mean,
                "std": preprocessor.numbers("image_std", 3) if "image_std" in preprocessor else default_std,
                "resample": _RESAMPLE[resample],
            }
        )
    except ValidationError as error:
        raise CheckpointError(f"{preprocessor.source}: {first_problem(error).with_value}") from None


def _default_statistics(tower: VisionTowerConfig) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Defaults of each family's preprocessor, for values that its config omits."""
    if isinstance(tower, ClipConfig):
        return CLIP_MEAN, CLIP_STD
    if isinstance(tower, RadioConfig):
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def _side(preprocessor: Section, key: str) -> int:
    """Return a size given as a number, {"height", "width"} (equal), {"shortest_edge"} or {"longest_edge"}."""
    if not isinstance(preprocessor.values.get(key), dict):
        return preprocessor.integer(key)
    size = preprocessor.section(key)
    for edge in ("shortest_edge", "longest_edge"):
        if edge in size:
            return size.integer(edge)
    height, width = size.integer("height"), size.integer("width")
    if height != width:
        raise CheckpointError(f"{size.source} is {height}x{width}; expected a square.")
    return height


def _is_shortest_edge(preprocessor: Section) -> bool:
    value = preprocessor.values.get("size")
    # A bare number means the shortest edge to CLIP's processor, which also crops, and a square to SigLIP's.
    return (
        "shortest_edge" in preprocessor.section("size")
        if isinstance(value, dict)
        else preprocessor.boolean("do_center_crop", False)
    )


def write_tower_config(config: VisionTowerConfig, dtype: str) -> dict[str, object]:
    """Return the JSON of `vision_tower/config.json`; `read_tower_config` returns the same config from it."""
    image_size = config.pretrained_image_size or config.image_size
    if not isinstance(config, SiglipConfig | ClipConfig | InternVitConfig):
        fields = config.model_dump(
            mode="json", exclude={"name", "select_layer", "select_feature", "pretrained_image_size"}
        )
        return {**fields, "image_size": image_size, "model_type": config.name, "torch_dtype": dtype}
    raw: dict[str, object] = {**_vit_json(config), "image_size": image_size, "torch_dtype": dtype}
    if isinstance(config, SiglipConfig):
        return raw | {
            "architectures": ["SiglipVisionModel"],
            "model_type": "siglip_vision_model",
            "vision_use_head": config.use_head,
        }
    if isinstance(config, ClipConfig):
        return raw | {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    intern = {"qkv_bias": config.qkv_bias, "qk_normalization": config.qk_normalization, "norm_type": config.norm_type}
    return raw | intern | {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b"}


def _vit_json(config: ViTConfig) -> dict[str, object]:
    return {
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "num_attention_heads": config.num_attention_heads,
        "num_channels": config.num_channels,
        "num_hidden_layers": config.num_hidden_layers,
        "patch_size": config.patch_size,
    }


def write_pixel_config(pixels: PixelConfig, tower: VisionTowerConfig, size: int) -> dict[str, object]:
    """Return the JSON of `preprocessor_config.json`; `size` in pixels."""
    if isinstance(tower, InternVitConfig):
        return {"image_processor_type": "InternVisionPreprocessor", "resize_size": size}
    resample = next(number for number, name in _RESAMPLE.items() if name == pixels.resample)
    square = {"height": size, "width": size}
    raw: dict[str, object] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(pixels.mean),
        "image_processor_type": "CLIPImageProcessor" if pixels.resize == "shortest_edge" else "SiglipImageProcessor",
        "image_std": list(pixels.std),
        "resample": resample,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size} if pixels.resize == "shortest_edge" else square,
    }
    return raw | ({"crop_size": square, "do_center_crop": True} if pixels.crop else {})
