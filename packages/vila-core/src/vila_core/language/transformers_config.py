"""A checkpoint's config as transformers may see it: the fields of its model type and nothing else.

transformers acts on many keys of a config: it loads attention and expert kernels from the hub (`attn_implementation`,
`experts_implementation`), lets any key replace an attribute or a method of the config object, and reads settings for
generation, classification and parallelism. None of it is needed to build the network that the weights fit. So every
config object is built from an allow-list: the fields that its class declares, under their own or their old names.
How attention is computed is never the checkpoint's choice.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from types import NoneType
from typing import cast, get_args

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vila_core.errors import ConfigError, unknown_name
from vila_core.size_limits import MAX_INTEGER

ROPE_KEYS = ("rope_scaling", "rope_parameters")

_ROPE_LEGACY_KEYS = {"rope_scaling", "rope_theta", "partial_rotary_factor"}
_NEVER = {"per_layer_config", "attn_implementation", "experts_implementation", "model_type", "torch_dtype"}
_OLD_ROPE_TYPES = {"su": "longrope"}
"""As the first releases of Phi-3 wrote it."""


def build_config(hf_config: dict[str, object], vocab_size: int) -> PretrainedConfig:
    """Return transformers' config object for a causal language model, made of the known fields of `hf_config`.

    Raises:
        ConfigError: the model type is unknown, or a value has the wrong type or is out of range.
    """
    model_type = hf_config.get("model_type")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & CONFIG_MAPPING.keys()
    if not isinstance(model_type, str) or model_type not in known:
        hint = unknown_name("", str(model_type)[:100], known).rpartition("Did you mean")[2]
        meant = f" Did you mean{hint}" if hint.endswith("?") else ""
        raise ConfigError(f"'model_type' is {str(model_type)[:100]!r}; transformers has no such language model.{meant}")
    values = known_fields(CONFIG_MAPPING[model_type], hf_config)
    # Several published configs have a padding token of -1; nothing is padded with it here.
    if not _is_index(values.get("pad_token_id"), vocab_size):
        values.pop("pad_token_id", None)
    config_type = cast("Callable[..., PretrainedConfig]", CONFIG_MAPPING[model_type])
    return config_type(**{**values, "vocab_size": vocab_size})


def known_fields(config_type: type[PretrainedConfig], raw: dict[str, object], at: str = "") -> dict[str, object]:
    """Return the values of `raw` that are fields of `config_type`, checked; `at` is where `raw` stands in the config.

    A null counts as absent unless the field allows it, and a whole number stands for a float.

    Raises:
        ConfigError: a value has the wrong type or is out of range. The message begins with its key.
    """
    base = {field.name for field in fields(PretrainedConfig)}
    types = {field.name: field.type for field in fields(config_type) if field.name not in base}
    allowed = (types.keys() | config_type.attribute_map.keys() | _legacy_keys(config_type) | _ROPE_LEGACY_KEYS) - _NEVER
    sub_configs = cast("dict[str, type]", config_type.sub_configs)
    result: dict[str, object] = {}
    for key, value in raw.items():
        if key not in allowed or key.startswith("_"):
            continue
        where = f"{at}{key}"
        if key in sub_configs:
            result[key] = _sub_config(sub_configs[key], value, where)
            continue
        kind = types.get(config_type.attribute_map.get(key, key))
        if value is None and (kind is None or NoneType not in get_args(kind)) and key not in _ROPE_LEGACY_KEYS:
            continue
        _check_numbers(value, where)
        value = _with_infinities(value)
        if key in ROPE_KEYS:
            value = _rope(config_type, value, where)
        result[key] = _converted(kind, value, where)
    return result


def _legacy_keys(config_type: type[PretrainedConfig]) -> set[str]:
    """Return the keys that a config class reads although they are not its fields: names of older releases.

    Its `__post_init__` takes them out of the keyword arguments by name.
    """
    names: set[str] = set()
    for base in config_type.__mro__[: config_type.__mro__.index(PretrainedConfig)]:
        code = getattr(base.__dict__.get("__post_init__"), "__code__", None)
        names |= {name for name in getattr(code, "co_consts", ()) if isinstance(name, str) and name.isidentifier()}
    return {name for name in names if not hasattr(config_type, name)}


def _sub_config(sub_type: type, value: object, where: str) -> dict[str, object] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f"'{where}' is {_shown(value)}; expected an object.")
    raw = cast("dict[str, object]", value)
    if not issubclass(sub_type, PretrainedConfig):  # any type that it names
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise ConfigError(f"'{where}.model_type' is {_shown(model_type)}, which transformers does not have.")
        return {**known_fields(CONFIG_MAPPING[model_type], raw, f"{where}."), "model_type": model_type}
    return known_fields(sub_type, raw, f"{where}.")


def _converted(kind: object, value: object, where: str) -> object:
    """Return `value` as the field's type if only the notation of the number differs."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"'{where}' is {_shown(value)}; expected a number.")
    return value


def _check_numbers(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"'{where}' is {value}; expected a finite number.")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError(f"'{where}' is a number beyond {MAX_INTEGER}, which no language model has.")
    if isinstance(value, dict | list):
        items = cast("dict[str, object] | list[object]", value)
        for item in items.values() if isinstance(items, dict) else items:
            _check_numbers(item, where)


def _with_infinities(value: object) -> object:
    """Return `value` with transformers' notation for infinity in a list resolved: `{"__float__": "Infinity"}`."""
    if not isinstance(value, list):
        return value
    return [math.inf if item == {"__float__": "Infinity"} else item for item in cast("list[object]", value)]


def _rope(config_type: type[PretrainedConfig], value: object, where: str) -> object:
    """Return rotary parameters, with types by their present names, for all layers or by layer type."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f"'{where}' is {_shown(value)}; expected an object.")
    parameters = dict(cast("dict[str, object]", value))
    nested = [key for key, item in parameters.items() if isinstance(item, dict)]
    for key in nested:
        parameters[key] = _rope(config_type, parameters[key], f"{where}.{key}")
    name = parameters.get("rope_type", parameters.get("type"))
    if name is None:
        return parameters
    known = {"default", config_type.default_rope_type, *ROPE_INIT_FUNCTIONS}
    if not isinstance(name, str) or _OLD_ROPE_TYPES.get(name, name) not in known:
        raise ConfigError(f"'{where}.rope_type' is {_shown(name)}; expected one of {', '.join(sorted(known))}.")
    parameters.pop("type", None)
    return {**parameters, "rope_type": _OLD_ROPE_TYPES.get(name, name)}


def _is_index(value: object, size: int) -> bool:
    return isinstance(value, int) and 0 <= value < size


def _shown(value: object) -> str:
    return repr(value)[:100]
