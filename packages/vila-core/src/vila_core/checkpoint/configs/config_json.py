"""`VilaConfig` to JSON and back. The type of each component is the one registered under its `name`."""

from pydantic import ValidationError

from vila_core.checkpoint.json_files import Section
from vila_core.config import Config, VilaConfig
from vila_core.errors import CheckpointError, ConfigError, first_problem
from vila_core.plugins.hookspecs import Component
from vila_core.plugins.registration import Plugins
from vila_core.plugins.registry import Registry


def dump_config(config: VilaConfig) -> dict[str, object]:
    """Return `config` as JSON values."""
    return config.model_dump(mode="json")


def parse_config(section: Section, plugins: Plugins) -> VilaConfig:
    """Return the config that `dump_config` wrote.

    Raises:
        CheckpointError: a part that no plugin registers, or a value that does not fit.
    """
    registries: dict[str, Registry[Component]] = {
        "vision_tower": plugins.vision_towers,
        "projector": plugins.projectors,
        "image_encoder": plugins.media_encoders,
        "video_encoder": plugins.media_encoders,
        "language_model": plugins.language_models,
    }
    try:
        parts = {key: _part(section.section(key), registry) for key, registry in registries.items()}
        if "generation_head" in section:
            parts["generation_head"] = _part(section.section("generation_head"), plugins.generation_heads)
        return VilaConfig.model_validate({**section.values, **parts})
    except ValidationError as error:
        raise CheckpointError(f"{section.source}: {first_problem(error)}") from None
    except ConfigError as error:
        raise CheckpointError(f"{section.source}: {error}") from None


def _part(section: Section, registry: Registry[Component]) -> Config:
    component = registry.get(section.string("name"))
    return component.config_type.model_validate(section.values)
