"""Checks of what hooks return, item by item, before any of a plugin's items is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import isclass
from itertools import islice
from typing import Any, cast

from vila_core.errors import PluginError, shown
from vila_core.plugins.datasets import Dataset
from vila_core.plugins.hookspecs import CheckpointFormat, Command, Component, Named

MAX_ITEMS = 10_000
"""Limit on what one hook returns."""

MAX_HELP = 10_000
"""Limit on the characters of a command's help."""
MAX_NAME = 200
"""Limit on the characters of a name."""


@dataclass(frozen=True)
class Hook:
    """A registration hook.

    Attributes:
        name: of the hook function.
        kind: what one item is called in messages.
        fault: returns what is wrong with an item, None if nothing.
    """

    name: str
    kind: str
    fault: Callable[[object], str | None]


def _component_fault(base_name: str) -> Callable[[object], str | None]:
    def fault(item: object) -> str | None:
        from vila_core import config  # imports pydantic, which the help pages do without

        base: type[config.Config] = getattr(config, base_name)
        if not isinstance(item, Component):
            return f"expected a vila_core.Component, got {type(item).__name__}"
        config_type, build = cast("tuple[object, object]", (item.config_type, item.build))
        if not (isclass(config_type) and issubclass(config_type, base)):
            return f"config_type must be a subclass of vila_core.config.{base_name}, got {shown(config_type)}"
        return None if callable(build) else f"build must be callable, got {type(build).__name__}"

    return fault


def _template_fault(item: object) -> str | None:
    if isclass(item) or not callable(getattr(item, "render", None)):
        return f"expected a chat template (an object with name and render), got {shown(item)}"
    return None


def _format_fault(item: object) -> str | None:
    if isclass(item):
        return f"expected an instance of a checkpoint format, got the class {item.__name__}"
    if isinstance(item, CheckpointFormat):
        return None
    return f"expected a checkpoint format with name, detect, read and write, got {type(item).__name__}"


def _dataset_fault(item: object) -> str | None:
    if not isclass(item) and isinstance(item, Dataset):
        return None
    return f"expected a dataset (an object with name, splits, subsets, size and sample), got {shown(item)}"


def _recipe_fault(item: object) -> str | None:
    if isclass(item) or not callable(getattr(item, "build", None)):
        return f"expected a recipe (an object with name, summary and build), got {shown(item)}"
    return None if isinstance(getattr(item, "summary", None), str) else "every recipe needs a summary (a text)"


def _command_fault(item: object) -> str | None:
    if not isinstance(item, Command):
        return f"expected a vila_core.Command, got {type(item).__name__}"
    if not isinstance(cast(object, item.help), str):
        return f"help must be a text, got {shown(item.help)}"
    if len(item.help) > MAX_HELP or not all(character.isprintable() or character in "\n\t" for character in item.help):
        return f"help must be a printable text of at most {MAX_HELP:,} characters, got {shown(item.help)}"
    return None if callable(cast(object, item.load)) else f"load must be callable, got {type(item.load).__name__}"


def _with_methods(kind: str, *methods: str) -> Callable[[object], str | None]:
    """Check only that the methods exist: their signatures are the sibling's, which core does not import."""

    def fault(item: object) -> str | None:
        missing = [method for method in methods if not callable(getattr(item, method, None))]
        if isclass(item) or missing:
            return f"expected {kind} (an object with name, {', '.join(methods)}), got {shown(item)}"
        return None

    return fault


def _any_named(item: object) -> str | None:
    return None


HOOKS: tuple[Hook, ...] = (
    Hook("vila_vision_towers", "vision tower", _component_fault("VisionTowerConfig")),
    Hook("vila_projectors", "projector", _component_fault("ProjectorConfig")),
    Hook("vila_media_encoders", "media encoder", _component_fault("MediaEncoderConfig")),
    Hook("vila_language_models", "language model", _component_fault("LanguageModelConfig")),
    Hook("vila_generation_heads", "generation head", _component_fault("GenerationHeadConfig")),
    Hook("vila_chat_templates", "chat template", _template_fault),
    Hook("vila_checkpoint_formats", "checkpoint format", _format_fault),
    Hook("vila_quantizers", "quantizer", _with_methods("a quantizer", "quantize_block")),
    Hook("vila_kernels", "kernel", _with_methods("a kernel", "refusal", "pack", "multiply")),
    Hook("vila_datasets", "dataset", _dataset_fault),
    Hook("vila_recipes", "recipe", _recipe_fault),
    Hook("vila_callbacks", "callback", _with_methods("a callback factory", "build")),
    Hook("vila_tasks", "task", _any_named),
    Hook("vila_metrics", "metric", _any_named),
    Hook("vila_commands", "command", _command_fault),
)
"""Every registration hook of `hookspecs.py`, in the same order."""


def checked_items(hook: Hook, returned: object) -> list[Named]:
    """Return the items that a hook returned. Raises `PluginError` that names the hook, the item and the fault."""
    if isinstance(returned, (str, bytes)) or not isinstance(returned, Sequence):
        raise PluginError(
            f"{hook.name}() must return a sequence, got {type(returned).__name__}. Return a tuple or a list."
        )
    items: list[Named] = []
    seen: set[str] = set()
    found = list(islice(cast(Sequence[Any], returned), MAX_ITEMS + 1))  # a sequence of a plugin may have no end
    if len(found) > MAX_ITEMS:
        raise PluginError(f"{hook.name}() returns more than {MAX_ITEMS:,} items.")
    for position, item in enumerate(found):
        name = getattr(item, "name", None)
        fault = hook.fault(item)
        if fault is None and not (isinstance(name, str) and name):
            fault = f"every {hook.kind} needs a name (a non-empty string), got {shown(name)}"
        if fault is None and isinstance(name, str) and len(name) > MAX_NAME:
            fault = f"a name has at most {MAX_NAME} characters, got {shown(name)}"
        if fault is None and isinstance(name, str) and not (name.isprintable() and name == name.strip()):
            fault = f"a name is one printable line without spaces around it, got {shown(name)}"
        if fault is not None:
            label = f" ({shown(name)})" if isinstance(name, str) else ""
            raise PluginError(f"{hook.name}()[{position}]{label}: {fault}.")
        if item.name in seen:
            raise PluginError(f"{hook.name}() returns two {hook.kind}s named '{item.name}'. Names must be unique.")
        seen.add(item.name)
        items.append(item)
    return items
