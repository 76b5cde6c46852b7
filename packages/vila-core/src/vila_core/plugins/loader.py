"""Finds the installed plugins, registers each one in isolation, and returns typed registries.

    from vila_core.plugins.loader import load_plugins

    load_plugins().vision_towers.get("siglip").build(config)

A plugin is an entry point of the group `vila`, or a plain file given to `load_plugin_file`. If one fails to import
or to register, its distribution and the error are logged, none of its hooks stay registered, and the program continues.

| environment | effect |
| --- | --- |
| `VILA_PLUGINS` | unset: all; empty: none; `a,b`: only those entry points. Core's own are always loaded. |
| `VILA_STRICT_PLUGINS=1` | a plugin that fails to load raises `PluginError` |
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import traceback as traceback_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

import vila_core
from vila_core.errors import PluginError, unknown_name
from vila_core.plugins import hookspecs
from vila_core.plugins.datasets import Dataset
from vila_core.plugins.hook_checks import HOOKS, checked_items
from vila_core.plugins.hookspecs import (
    HOOK_API,
    REMOVED_HOOKS,
    CheckpointFormat,
    Command,
    Component,
    Kernel,
    Named,
    Quantizer,
)
from vila_core.plugins.isolation import PluginFailedError, run_plugin_code
from vila_core.plugins.registry import Owner, Registered, Registry

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate

logger = logging.getLogger("vila_core.plugins.loader")

ENTRY_POINT_GROUP = "vila"
HOOK_NAMES = tuple(hook.name for hook in HOOKS)


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin: the names it registered by hook, or the error for which it was rolled back."""

    owner: Owner
    provides: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    error: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class Plugins:
    """All registries. `infos` lists the plugins in loading order, core first."""

    vision_towers: Registry[Component]
    projectors: Registry[Component]
    media_encoders: Registry[Component]
    language_models: Registry[Component]
    chat_templates: Registry[ChatTemplate]
    checkpoint_formats: Registry[CheckpointFormat]
    quantizers: Registry[Quantizer]
    kernels: Registry[Kernel]
    datasets: Registry[Dataset]
    tasks: Registry[Named]
    metrics: Registry[Named]
    commands: Registry[Command]
    infos: tuple[PluginInfo, ...]


def load_plugins() -> Plugins:
    """Return all registries. Plugins are loaded on the first call; the environment is read on every call.

    Raises `PluginError` for an unknown name in `VILA_PLUGINS`, and in strict mode for any plugin that fails to load.
    """
    selection = os.environ.get("VILA_PLUGINS")
    names = None if selection is None else tuple(part.strip() for part in selection.split(",") if part.strip())
    strict = os.environ.get("VILA_STRICT_PLUGINS", "").lower() in {"1", "true", "yes"}
    return _load(names, strict, tuple(_plugin_files))


def load_plugin_file(path: str | Path) -> Plugins:
    """Register the hooks in the Python file at `path` for this process, and return all registries.

    The file is code, and it is executed. Since the user names it, any failure raises `PluginError`, strict mode or not.
    """
    file = Path(path).expanduser().resolve()
    if file in _plugin_files:
        return load_plugins()
    if file.suffix != ".py" or not file.is_file():
        raise PluginError(
            f"Plugin file '{path}' does not exist or is not a Python file. "
            "Give the path of a .py file with vila_core.hookimpl functions."
        )
    _plugin_files[file] = _import_file(file)
    try:
        return load_plugins()
    except PluginError:
        sys.modules.pop(_plugin_files.pop(file).__name__, None)
        raise


# Files given with `--plugin`: a process-wide registration, like an import.
_plugin_files: dict[Path, ModuleType] = {}


@functools.cache
def _load(selection: tuple[str, ...] | None, strict: bool, files: tuple[Path, ...]) -> Plugins:
    from vila_core.plugins import builtins

    loader = Loader()
    loader.add(Owner("builtins", "vila-core", vila_core.__version__), lambda: builtins)
    for point in _selected(entry_points(group=ENTRY_POINT_GROUP), selection):
        owner = Owner(
            point.name,
            point.dist.name if point.dist else "unknown distribution",
            point.dist.version if point.dist else "?",
        )
        try:
            run_plugin_code(functools.partial(loader.add, owner, point.load))
        except PluginFailedError as error:
            message = str(error)
            if strict:
                raise PluginError(
                    f"Plugin '{owner.plugin}' of {owner.distribution} {owner.version} failed to load: {message}"
                ) from error
            logger.warning(
                "Plugin '%s' of %s %s was not loaded: %s", owner.plugin, owner.distribution, owner.version, message
            )
            loader.infos.append(PluginInfo(owner, error=message, traceback=_traceback(error)))
    for file in files:
        owner = Owner(file.stem, str(file), "file")
        try:
            run_plugin_code(functools.partial(loader.add, owner, functools.partial(_plugin_files.__getitem__, file)))
        except PluginFailedError as error:
            if isinstance(error.__cause__, PluginError):
                raise error.__cause__ from None
            raise PluginError(f"Plugin file '{file}' fails to register: {error}") from error
    return loader.plugins()


def _traceback(error: PluginFailedError) -> str:
    try:
        return "".join(traceback_module.format_exception(error.__cause__))
    except Exception:  # noqa: BLE001 - an exception of a plugin may fail to describe itself
        return str(error)


def _selected(points: Sequence[EntryPoint] | Any, selection: tuple[str, ...] | None) -> list[EntryPoint]:
    """Return the entry points to load, in a stable order. Raises `PluginError` for an unknown name."""
    found: list[EntryPoint] = sorted(points, key=lambda point: (point.dist.name if point.dist else "", point.name))
    if selection is None:
        return found
    for name in selection:
        if name not in {point.name for point in found}:
            raise PluginError(f"VILA_PLUGINS: {unknown_name('plugin', name, {point.name for point in found})}")
    return [point for point in found if point.name in selection]


def _import_file(file: Path) -> ModuleType:
    name = f"vila_plugin_file_{file.stem}_{len(_plugin_files)}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look their module up here.
    sys.modules[name] = module
    try:
        run_plugin_code(functools.partial(spec.loader.exec_module, module))
    except PluginFailedError as error:
        sys.modules.pop(name, None)
        raise PluginError(f"Plugin file '{file}' fails on import: {error}") from error
    return module


class Loader:
    """Registers plugins one by one, each completely or not at all."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("vila")
        self.manager.add_hookspecs(hookspecs)
        self.found: dict[str, dict[str, Registered[Any]]] = {name: {} for name in HOOK_NAMES}
        self.contested: dict[str, dict[str, str]] = {name: {} for name in HOOK_NAMES}
        self.infos: list[PluginInfo] = []

    def add(self, owner: Owner, load: Callable[[], object]) -> None:
        """Import and register one plugin. If that raises, nothing of it stays registered."""
        plugin = load()
        _check_hook_api(plugin)
        try:
            self.manager.register(plugin, name=str(owner))
            returned = {
                hook.name: checked_items(hook, self._call(hook.name, plugin))
                for hook in HOOKS
                if self._implements(hook.name, plugin)
            }
            _check_hook_names(self.manager, plugin)
            self._check_collisions(owner, returned)
        except BaseException:
            if self.manager.has_plugin(str(owner)):
                self.manager.unregister(name=str(owner))
            raise
        for hook, items in returned.items():
            self.found[hook].update({item.name: Registered(item, owner) for item in items})
        self.infos.append(
            PluginInfo(owner, {hook: tuple(item.name for item in items) for hook, items in returned.items()})
        )

    def _implementations(self, hook: str, plugin: object) -> list[pluggy.HookImpl]:
        return [found for found in getattr(self.manager.hook, hook).get_hookimpls() if found.plugin is plugin]

    def _implements(self, hook: str, plugin: object) -> bool:
        return bool(self._implementations(hook, plugin))

    def _call(self, hook: str, plugin: object) -> object:
        (implementation,) = self._implementations(hook, plugin)
        if implementation.wrapper or implementation.hookwrapper:
            raise PluginError(
                f"{hook} is a hook wrapper. Make it a plain function: a wrapper could hide a duplicate name."
            )
        return implementation.function()

    def _check_collisions(self, owner: Owner, returned: dict[str, list[Named]]) -> None:
        faults: list[str] = []
        for hook in HOOKS:
            for item in returned.get(hook.name, ()):
                earlier = self.found[hook.name].get(item.name)
                if earlier is None:
                    continue
                message = f"Two plugins register the {hook.kind} '{item.name}': {earlier.owner} and {owner}."
                if earlier.owner.plugin == "builtins":
                    faults.append(f"{message} Core's own is kept; rename the other.")
                else:
                    only = f"VILA_PLUGINS={earlier.owner.plugin} or VILA_PLUGINS={owner.plugin}"
                    choice = f"Uninstall one, or load only one: {only}."
                    self.contested[hook.name][item.name] = f"{message} {choice}"
                    faults.append(f"{message} {choice}")
        if faults:
            raise PluginError(" ".join(faults))

    def plugins(self) -> Plugins:
        failed = tuple(info.owner.plugin for info in self.infos if info.error is not None)
        registries = {
            hook.name.removeprefix("vila_"): Registry(
                hook.kind, self.found[hook.name], self.contested[hook.name], failed
            )
            for hook in HOOKS
        }
        return Plugins(infos=tuple(self.infos), **registries)


def _check_hook_api(plugin: object) -> None:
    declared = vars(plugin).get("VILA_HOOK_API", HOOK_API) if isinstance(plugin, ModuleType) else HOOK_API
    if declared != HOOK_API:
        raise PluginError(
            f"The plugin was written for hook API {declared!r}, but vila-core {vila_core.__version__} has hook API "
            f"{HOOK_API}. Update the plugin (docs/plugins.md lists the changes), or install matching versions."
        )


def _check_hook_names(manager: pluggy.PluginManager, plugin: object) -> None:
    """Raise for hooks that do not exist, and for functions with the name of a hook that are not marked."""
    marked = {caller.name for caller in manager.get_hookcallers(plugin) or ()}
    for name in sorted(marked - set(HOOK_NAMES)):
        if name in REMOVED_HOOKS:
            raise PluginError(
                f"The hook '{name}' was removed in hook API {HOOK_API}, because nothing read it. Delete the function."
            )
        raise PluginError(unknown_name("hook", name, HOOK_NAMES))
    for name in HOOK_NAMES:
        if isinstance(plugin, ModuleType) and callable(vars(plugin).get(name)) and name not in marked:
            raise PluginError(f"The function {name} is not marked as a hook. Decorate it with @vila_core.hookimpl.")
