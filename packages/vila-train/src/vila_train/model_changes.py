"""Applies a `ModelConfig` to the model that training starts from."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from vila_core.config import (
    DecoderConfig,
    PreprocessConfig,
    ProjectorConfig,
    S2Config,
    TimeTokenConfig,
    TSPVideoEncoderConfig,
    VilaConfig,
)
from vila_core.errors import ConfigError, first_problem
from vila_train.config import ModelConfig

Checked = TypeVar("Checked", bound=BaseModel)


def changed(config: VilaConfig, changes: ModelConfig) -> VilaConfig:
    """Return the configuration of a model with `changes`.

    Raises:
        ConfigError: the changes contradict one another or do not fit the model.
    """
    updates: dict[str, object] = {
        **_scales(config, changes),
        "preprocess": _preprocess(config, changes),
        "language_model": _language_model(config, changes),
    }
    dynamic = updates.get("dynamic_s2", config.dynamic_s2)
    static = updates.get("s2", config.s2)
    scales = next((len(s2.scales) for s2 in (dynamic, static) if isinstance(s2, S2Config)), 1)
    updates["projector"] = ProjectorConfig(
        name=changes.projector or config.projector.name,
        in_size=config.vision_tower.output_size * scales,
        out_size=config.projector.out_size,
    )
    if config.projector == updates["projector"]:
        updates["projector"] = config.projector  # may be of a plugin's own type
    if changes.temporal_pool is not None:
        old = config.video_encoder
        texts = {"start_tokens": old.start_tokens, "end_tokens": old.end_tokens}
        updates["video_encoder"] = _checked(
            TSPVideoEncoderConfig, {"pool_sizes": ((changes.temporal_pool, 1, 1),), **texts}
        )
    if changes.num_time_tokens:
        written = {} if config.time_tokens is None else {"format": config.time_tokens.format}
        updates["time_tokens"] = _checked(TimeTokenConfig, {"count": changes.num_time_tokens, **written})
    if changes.chat_template is not None:
        updates["chat_template"] = changes.chat_template
    return _checked(VilaConfig, {name: getattr(config, name) for name in type(config).model_fields} | updates)


def _scales(config: VilaConfig, changes: ModelConfig) -> dict[str, object]:
    """Return the settings of dynamic S2: tiles of the first scale, merged to the grid of the last, as in NVILA."""
    if changes.s2_scales is None:
        return {}
    scales = tuple(sorted(changes.s2_scales))
    if len(scales) == 1:
        raise ConfigError(f"model.s2_scales is {scales}: dynamic S2 has at least two scales, such as 448,896,1344.")
    size = config.vision_tower.image_size
    if scales and scales[0] != size:
        raise ConfigError(
            f"model.s2_scales begins with {scales[0]}; expected {size}, the image size of the vision tower, and "
            "multiples of it."
        )
    dynamic = (
        _checked(S2Config, {"scales": scales, "max_split_size": scales[0], "resize_output_to_scale_idx": -1})
        if scales
        else None
    )
    return {"s2": None, "dynamic_s2": dynamic, "pixels": config.pixels.model_copy(update={"size": size})}


def _preprocess(config: VilaConfig, changes: ModelConfig) -> PreprocessConfig:
    updates: dict[str, object] = {
        name: value
        for name in ("image_aspect_ratio", "max_tiles", "num_video_frames")
        if (value := getattr(changes, name)) is not None
    }
    if changes.s2_scales is not None:
        updates["s2_scales"] = tuple(sorted(changes.s2_scales))
    has_scales = config.dynamic_s2 is not None if changes.s2_scales is None else bool(changes.s2_scales)
    if updates.get("image_aspect_ratio", config.preprocess.image_aspect_ratio) == "dynamic_s2" and not has_scales:
        raise ConfigError(
            "model.image_aspect_ratio 'dynamic_s2' needs model.s2_scales, such as 448,896,1344, and this model would "
            "have none."
        )
    return _checked(PreprocessConfig, {**config.preprocess.model_dump(), **updates})


def _language_model(config: VilaConfig, changes: ModelConfig) -> object:
    language_model, length = config.language_model, changes.max_length
    if length is None:
        return language_model
    limit = language_model.max_position_embeddings if isinstance(language_model, DecoderConfig) else None
    if limit is not None and length > limit:
        raise ConfigError(f"model.max_length is {length:,}, but the language model has {limit:,} positions.")
    return language_model.model_copy(update={"max_length": length})


def _checked(kind: type[Checked], values: dict[str, object]) -> Checked:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"The model cannot be changed so: {first_problem(error).with_value}.") from None
