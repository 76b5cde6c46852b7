"""Registers plugins one by one: what `vila_core.plugins.loader` finds, checked and collected."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

import vila_core
from vila_core.errors import PluginError, unknown_name
from vila_core.plugins import hookspecs
from vila_core.plugins.datasets import Dataset
from vila_core.plugins.guards import guarded
from vila_core.plugins.hook_checks import HOOKS, Hook, checked_items
from vila_core.plugins.hookspecs import (
    HOOK_API,
    REMOVED_HOOKS,
    CallbackFactory,
    CheckpointFormat,
    Command,
    Component,
    Kernel,
    Named,
    Quantizer,
    Recipe,
)
from vila_core.plugins.registry import Owner, Registered, Registry

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate

HOOK_NAMES = tuple(hook.name for hook in HOOKS)
COMMAND_HOOK = next(hook for hook in HOOKS if hook.name == "vila_commands")
CORE = "builtins"


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
    generation_heads: Registry[Component]
    chat_templates: Registry[ChatTemplate]
    checkpoint_formats: Registry[CheckpointFormat]
    quantizers: Registry[Quantizer]
    kernels: Registry[Kernel]
    datasets: Registry[Dataset]
    recipes: Registry[Recipe]
    callbacks: Registry[CallbackFactory]
    tasks: Registry[Named]
    metrics: Registry[Named]
    commands: Registry[Command]
    infos: tuple[PluginInfo, ...]


class Loader:
    """Registers plugins one by one, each completely or not at all."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("vila")
        self.manager.add_hookspecs(hookspecs)
        self.found: dict[str, dict[str, Registered[Any]]] = {name: {} for name in HOOK_NAMES}
        self.contested: dict[str, dict[str, str]] = {name: {} for name in HOOK_NAMES}
        self.infos: dict[Owner, PluginInfo] = {}
        self.pending: list[Owner] = []
        """Plugins that were added but are not complete."""

    def add(self, owner: Owner, load: Callable[[], object]) -> None:
        """Import a plugin and call its `vila_commands`. If that raises, nothing of it stays registered."""
        with self._all_or_nothing(owner):
            plugin = load()
            _check_hook_api(plugin)
            self.manager.register(plugin, name=str(owner))
            self._register(owner, plugin, [COMMAND_HOOK])
        self.pending.append(owner)

    def complete(self, owner: Owner) -> None:
        """Call the other hooks of a plugin. If that raises, nothing of it stays registered, commands included."""
        self.pending.remove(owner)
        with self._all_or_nothing(owner):
            plugin = self.manager.get_plugin(str(owner))
            assert plugin is not None
            self._register(owner, plugin, [hook for hook in HOOKS if hook is not COMMAND_HOOK])
            _check_hook_names(self.manager, plugin)

    def _register(self, owner: Owner, plugin: object, hooks: Sequence[Hook]) -> None:
        returned = {
            hook.name: checked_items(hook, self._call(hook.name, plugin))
            for hook in hooks
            if self._implements(hook.name, plugin)
        }
        self._check_collisions(owner, returned)
        for hook, items in returned.items():
            self.found[hook].update({item.name: Registered(item, owner) for item in items})
        provides = {
            name: tuple(entry.name for entry in found.values() if entry.owner is owner)
            for name, found in self.found.items()
            if self._implements(name, plugin)
        }
        self.infos[owner] = PluginInfo(owner, provides)

    @contextmanager
    def _all_or_nothing(self, owner: Owner) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.infos.pop(owner, None)
            for found in self.found.values():
                for name in [name for name, entry in found.items() if entry.owner is owner]:
                    del found[name]
            if self.manager.has_plugin(str(owner)):
                self.manager.unregister(name=str(owner))
            raise

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
                if earlier.owner.plugin == CORE:
                    faults.append(f"{message} Core's own is kept; rename the other.")
                else:
                    only = f"VILA_PLUGINS={earlier.owner.plugin} or VILA_PLUGINS={owner.plugin}"
                    choice = f"Uninstall one, or load only one: {only}."
                    self.contested[hook.name][item.name] = f"{message} {choice}"
                    faults.append(f"{message} {choice}")
        if faults:
            raise PluginError(" ".join(faults))

    def registry(self, hook: Hook) -> Registry[Any]:
        failed = tuple(info.owner.plugin for info in self.infos.values() if info.error is not None)
        entries = {
            name: Registered(guarded(hook.name, found.item, found.owner), found.owner)
            for name, found in self.found[hook.name].items()
        }
        return Registry(hook.kind, entries, self.contested[hook.name], failed)

    @functools.cached_property
    def plugins(self) -> Plugins:
        """All registries, once every plugin is complete."""
        assert not self.pending
        registries = {hook.name.removeprefix("vila_"): self.registry(hook) for hook in HOOKS}
        return Plugins(infos=tuple(self.infos.values()), **registries)


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
