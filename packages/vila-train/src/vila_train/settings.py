"""Settings as text: YAML files, and `key=value` from the command line.

config = change(config, ["data.max_length=8192", "tune=projector,language_model"])
config = read_config(Path("my.yaml"))     # its key `recipe` names the recipe that it changes
"""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel

from vila_core.config import Settings
from vila_core.errors import ConfigError, SettingError, shown
from vila_core.plugins.loader import load_plugins
from vila_train.config import TrainConfig
from vila_train.recipes.tiny import TinyConfig
from vila_train.yaml_files import parse_yaml, read_yaml

RunConfig = TrainConfig | TinyConfig
"""What a recipe returns."""
Config = TypeVar("Config", bound=Settings)


def build_recipe(name: str) -> RunConfig:
    """Return the configuration of a registered recipe. Raises `ConfigError` if it is unknown or returns none."""
    recipe = load_plugins().recipes.get(name)
    config: object = recipe.build()
    if not isinstance(config, TrainConfig | TinyConfig):
        raise ConfigError(f"Recipe '{name}' returns {shown(config)}; expected a vila_train.config.TrainConfig.")
    return config


def read_config(path: Path) -> RunConfig:
    """Return the configuration in a YAML file.

    Its key `recipe` names a recipe whose settings hold where the file says nothing. Without it, the file has all of
    the settings that have no default.

    Raises:
        ConfigError: the file is missing or not YAML, or a setting is unknown or has a wrong value.
    """
    values = read_yaml(path, ConfigError)
    recipe = values.pop("recipe", None)
    if recipe is not None and not isinstance(recipe, str):
        raise ConfigError(f"{path}: recipe is {shown(recipe)}; expected the name of a recipe.")
    base = None if recipe is None else build_recipe(recipe)
    config_type: type[RunConfig] = TrainConfig if base is None else type(base)
    _check_keys(config_type, values, f"{path}: ")
    if base is not None:
        values = _merged(base.model_dump(mode="json"), values)
    return _validated(config_type, values, f"{path}: ")


def write_config(config: RunConfig) -> str:
    """Return the configuration as YAML, which `read_config` reads."""
    import yaml

    values = config.model_dump(mode="json")
    if isinstance(config, TinyConfig):
        values = {"recipe": config.name, **values}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def change(config: Config, assignments: Sequence[str], source: str = "--set ") -> Config:
    """Return `config` with settings changed.

    Args:
        config: a configuration.
        assignments: such as "data.max_length=8192"; values are YAML, and a list may be written as a,b.
        source: begins the message of an error.

    Raises:
        ConfigError: an assignment is not of this form, its key is unknown, or its value is of the wrong type.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"{source}{assignment}: expected KEY=VALUE, such as data.max_length=8192.")
        where = f"{source}{assignment}: "
        kind = _type_of(type(config), key, where)
        value = _parse(kind, text.strip(), where)
        _check_group(kind, key, value, where)
        values = config.model_dump(mode="json")
        _assign(values, key.split("."), value)
        config = _validated(type(config), values, where)
    return config


def setting_names(config_type: type[BaseModel]) -> list[str]:
    """Return all settings of a configuration as dotted names, groups included."""
    return [*_names(config_type, "")]


def _names(config_type: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in config_type.model_fields.items():
        yield f"{prefix}{name}"
        below = _group(field.annotation)
        if below is not None:
            yield from _names(below, f"{prefix}{name}.")


def _plain_type(annotation: Any) -> Any:
    """Return X of `X | None` and of `Annotated[X, ...]`, and any other type as it is."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _plain_type(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _group(annotation: Any) -> type[BaseModel] | None:
    """Return the type of a nested configuration, None for a value."""
    kind = _plain_type(annotation)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type_of(config_type: type[BaseModel], key: str, where: str) -> Any:
    """Return the type of the setting `key`. Raises `ConfigError` if there is none."""
    kind: Any = config_type
    for name in key.split("."):
        group = _group(kind)
        if group is not None and name in group.model_fields:
            kind = _plain_type(group.model_fields[name].annotation)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            raise ConfigError(f"{where}{_unknown(config_type, key)}")
    return kind


def _unknown(config_type: type[BaseModel], key: str) -> str:
    known = setting_names(config_type)
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    nearest = same or difflib.get_close_matches(key, known, n=1)
    if not nearest:
        by_last = {name.rpartition(".")[2]: name for name in known}
        nearest = [by_last[found] for found in difflib.get_close_matches(last, by_last, n=1)]
    names = " or ".join(f"'{name}'" for name in nearest)
    hint = f"Did you mean {names}? " if nearest else ""
    return f"Unknown setting {shown(key)}. {hint}`vila-train show RECIPE` prints all settings."


def _check_keys(config_type: type[BaseModel], values: Mapping[str, object], where: str, prefix: str = "") -> None:
    """Raise `ConfigError` for the first key that is no setting."""
    root = config_type
    for name, value in values.items():
        kind = _type_of(root, f"{prefix}{name}", where)
        _check_group(kind, f"{prefix}{name}", value, where)
        if _group(kind) is not None and isinstance(value, dict):
            _check_keys(root, cast("dict[str, object]", value), where, f"{prefix}{name}.")


def _check_group(kind: Any, key: str, value: object, where: str) -> None:
    """Raise `ConfigError` if a group of settings is given one value, such as adapter=lora."""
    group = _group(kind)
    if group is not None and value is not None and not isinstance(value, dict):
        settings = ", ".join(f"{key}.{name}" for name in group.model_fields)
        raise ConfigError(f"{where}{key} is a group of settings, got {shown(value)}. Set one of: {settings}.")


def _parse(kind: Any, text: str, where: str) -> object:
    if text in ("null", "none", "None", "~") and text not in get_args(kind):  # "none" may be one of the choices
        return None
    if kind is str or kind is Path:
        return text
    value = parse_yaml(f"value: {text}" if text else "value: ''", where.removesuffix(": "), ConfigError)["value"]
    if get_origin(kind) is tuple and isinstance(value, str | int | float):
        return [part.strip() for part in text.split(",") if part.strip()]
    return value


def _assign(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    for name in path[:-1]:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
    values[path[-1]] = value


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`; mappings in both are merged."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _validated(config_type: type[Config], values: Mapping[str, object], where: str) -> Config:
    try:
        return config_type.model_validate(values)
    except SettingError as error:
        raise ConfigError(f"{where}{error.problem.with_value}.") from None
