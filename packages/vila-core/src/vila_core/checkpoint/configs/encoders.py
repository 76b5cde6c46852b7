"""Media encoders in a root config: a dict or a JSON string with `_target_`, which is looked up, never imported."""

from pydantic import ValidationError

from vila_core.checkpoint.json_files import Section, parse_json_object
from vila_core.config import MediaEncoderConfig
from vila_core.errors import CheckpointError, first_problem, unknown_name
from vila_core.plugins.hookspecs import Component
from vila_core.plugins.registry import Registry

TARGET_PACKAGE = "llava.model.encoders"
"""Modules of the reference implementation's classes: written into configs for its readers, never imported here."""


def read_encoder(root: Section, key: str, default: str, encoders: Registry[Component]) -> MediaEncoderConfig:
    """Return the encoder described by `root[key]`, or the encoder named `default` if it describes none.

    Raises:
        CheckpointError: a target that no registry knows, or a setting that it does not have.
    """
    if key not in root:
        return _validated(root, key, default, {}, encoders)
    value = root.values[key]
    section = (
        Section(parse_json_object(value, f"{root.source}: {key}"), f"{root.source}: {key}")
        if isinstance(value, str)
        else root.section(key)
    )
    name = section.string("_target_").rpartition(".")[2]
    if name not in encoders:
        raise CheckpointError(f"{root.source}: {key}: {unknown_name('media encoder', name, encoders.names())}")
    return _validated(
        root, key, name, {field: item for field, item in section.values.items() if field != "_target_"}, encoders
    )


def _validated(
    root: Section, key: str, name: str, settings: dict[str, object], encoders: Registry[Component]
) -> MediaEncoderConfig:
    try:
        config = encoders.get(name).config_type.model_validate({"name": name, **settings})
    except ValidationError as error:
        raise CheckpointError(f"{root.source}: {key}: {name}: {first_problem(error)}") from None
    assert isinstance(config, MediaEncoderConfig), type(config)
    return config


def write_encoder(config: MediaEncoderConfig) -> dict[str, object]:
    """Return the JSON object from which `read_encoder` returns `config`."""
    return {"_target_": f"{TARGET_PACKAGE}.{config.name}", **config.model_dump(mode="json", exclude={"name"})}
