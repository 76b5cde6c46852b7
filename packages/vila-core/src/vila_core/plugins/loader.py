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
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import vila_core
from vila_core.errors import PluginError, unknown_name
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.isolation import PluginFailedError, run_plugin_code
from vila_core.plugins.registration import COMMAND_HOOK, CORE, Loader, PluginInfo, Plugins
from vila_core.plugins.registry import Owner, Registry

logger = logging.getLogger("vila_core.plugins.loader")

ENTRY_POINT_GROUP = "vila"
FILE = "file"
"""The version of a plugin that is a plain file; its distribution is the path."""


def load_plugins() -> Plugins:
    """Return all registries. Plugins are loaded on the first call; the environment is read on every call.

    Raises `PluginError` for an unknown name in `VILA_PLUGINS`, and in strict mode for any plugin that fails to load.
    """
    selection, strict, files = _selection()
    try:
        return _complete(_load(selection, strict, files), strict)
    except PluginError:
        _load.cache_clear()  # the next call tries again
        raise


def load_commands() -> Registry[Command]:
    """Return the subcommands of `vila` without calling the other hooks, for a fast `vila --help`.

    If another hook of a plugin fails later, its commands are missing from `load_plugins().commands`.
    """
    return _load(*_selection()).registry(COMMAND_HOOK)


def _selection() -> tuple[tuple[str, ...] | None, bool, tuple[Path, ...]]:
    selection = os.environ.get("VILA_PLUGINS")
    names = None if selection is None else tuple(part.strip() for part in selection.split(",") if part.strip())
    strict = os.environ.get("VILA_STRICT_PLUGINS", "").lower() in {"1", "true", "yes"}
    return names, strict, tuple(_plugin_files)


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
def _load(selection: tuple[str, ...] | None, strict: bool, files: tuple[Path, ...]) -> Loader:
    from vila_core.plugins import builtins

    loader = Loader()
    loader.add(Owner(CORE, "vila-core", vila_core.__version__), lambda: builtins)
    for point in _selected(entry_points(group=ENTRY_POINT_GROUP), selection):
        owner = Owner(
            point.name,
            point.dist.name if point.dist else "unknown distribution",
            point.dist.version if point.dist else "?",
        )
        _isolate(loader, owner, functools.partial(loader.add, owner, point.load), strict)
    for file in files:
        owner = Owner(file.stem, str(file), FILE)
        load = functools.partial(_plugin_files.__getitem__, file)
        _isolate(loader, owner, functools.partial(loader.add, owner, load), strict)
    return loader


def _complete(loader: Loader, strict: bool) -> Plugins:
    while loader.pending:
        owner = loader.pending[0]
        _isolate(loader, owner, functools.partial(loader.complete, owner), strict)
    return loader.plugins


def _isolate(loader: Loader, owner: Owner, function: Callable[[], None], strict: bool) -> None:
    """Call `function`, code of the plugin of `owner`; if it fails, report that and continue.

    Raises:
        PluginError: it failed, and the mode is strict or the plugin is a file that the user named.
    """
    try:
        run_plugin_code(function)
    except PluginFailedError as error:
        if owner.version == FILE:
            if isinstance(error.__cause__, PluginError):
                raise error.__cause__ from None
            raise PluginError(f"Plugin file '{owner.distribution}' fails to register: {error}") from error
        plugin = f"'{owner.plugin}' of {owner.distribution} {owner.version}"
        if strict:
            raise PluginError(f"Plugin {plugin} failed to load: {error}") from error
        logger.warning("Plugin %s was not loaded: %s", plugin, error)
        loader.infos[owner] = PluginInfo(owner, error=str(error), traceback=_traceback(error))


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
