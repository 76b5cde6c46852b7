"""Contract checks of plugins: what loading alone does not check. `vila_core.testing` is the public name."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from vila_core.chat import Turn
from vila_core.config import Config
from vila_core.errors import PluginError
from vila_core.plugins import builtins
from vila_core.plugins.hookspecs import CallbackFactory, CheckpointFormat, Command, Component
from vila_core.plugins.loader import ENTRY_POINT_GROUP
from vila_core.plugins.registration import CORE, Loader
from vila_core.plugins.registry import Owner, Registered

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate

HEAVY_MODULES = ("torch", "triton", "transformers", "datasets")
"""Modules that neither a plugin module nor its hooks may import; only factories may."""


def check_plugin(plugin: ModuleType | str) -> dict[str, tuple[str, ...]]:
    """Check that a plugin follows the contract of `hookspecs.py`, and return the names that it registers, by hook.

    Args:
        plugin: the plugin module, its dotted name, or the name of its `vila` entry point.

    Raises:
        PluginError: lists everything that is wrong. Checks that
            - hooks exist, are marked, and return sequences of the right types;
            - names are unique, are not taken by core, and are the same on a second call;
            - importing the module and calling its hooks imports nothing heavy;
            - config types are frozen and have the component's name, and factories take one config;
            - factories of callbacks take no argument;
            - formats reject folders of other formats without raising, and `write` takes `max_shard_bytes`;
            - chat templates render a conversation.
    """
    module = _import(plugin)
    owner = Owner(module.__name__, "the plugin under test", "0")
    loader = Loader()
    if module is not builtins:
        core = Owner(CORE, "vila-core", "0")
        loader.add(core, lambda: builtins)
        loader.complete(core)
    provides = _register(loader, owner, module)
    faults = [*_heavy_imports(module)]
    for hook, entries in loader.found.items():
        faults += [fault for entry in entries.values() if entry.owner is owner for fault in _faults(hook, entry)]
    if not any(provides.values()):
        faults.append("it registers nothing: implement a hook of vila_core.plugins.hookspecs with @vila_core.hookimpl")
    if (again := _register(Loader(), owner, module)) != provides:
        faults.append(f"its hooks return other names the second time: first {provides}, then {again}")
    if faults:
        raise PluginError(
            f"Plugin '{module.__name__}' breaks the plugin contract:\n" + "\n".join(f"- {fault}." for fault in faults)
        )
    return provides


def _register(loader: Loader, owner: Owner, module: ModuleType) -> dict[str, tuple[str, ...]]:
    try:
        loader.add(owner, lambda: module)
        loader.complete(owner)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"Plugin '{module.__name__}' failed to register: {type(error).__name__}: {error}") from error
    return loader.infos[owner].provides


def _import(plugin: ModuleType | str) -> ModuleType:
    if isinstance(plugin, ModuleType):
        return plugin
    for point in entry_points(group=ENTRY_POINT_GROUP, name=plugin):
        return import_module(point.module)
    return import_module(plugin)


_IMPORT_SCRIPT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
module = importlib.import_module(sys.argv[1])
after_import = [name for name in json.loads(sys.argv[3]) if name in sys.modules]
for name in list(vars(module)):
    if hasattr(getattr(module, name), "vila_impl"):
        getattr(module, name)()
print(json.dumps([after_import, [name for name in json.loads(sys.argv[3]) if name in sys.modules]]))
"""


def _heavy_imports(module: ModuleType) -> Iterator[str]:
    """Import the module and call its hooks in a fresh interpreter; yield a fault if they import heavy modules."""
    command = [sys.executable, "-c", _IMPORT_SCRIPT, module.__name__, json.dumps(sys.path), json.dumps(HEAVY_MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"a fresh interpreter cannot import it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        return
    after_import, after_hooks = cast("list[list[str]]", json.loads(done.stdout.splitlines()[-1]))
    if after_import:
        yield f"importing it imports {', '.join(after_import)}; move these imports into the factories"
    elif after_hooks:
        yield f"calling its hooks imports {', '.join(after_hooks)}; move these imports into the factories"


def _component_faults(component: Component) -> Iterator[str]:
    config_type: type[Config] = component.config_type
    if not config_type.model_config.get("frozen") or config_type.model_config.get("extra") != "forbid":
        yield f"{config_type.__name__} must be frozen and forbid unknown keys, as vila_core.config.Config is"
    default = config_type.model_fields["name"].default
    if isinstance(default, str) and default != component.name:
        yield f"{config_type.__name__}.name is '{default}' by default, which is not the component's name"
    try:
        inspect.signature(component.build).bind(None)
    except TypeError as error:
        yield f"build must take one argument, the config: {error}"


def _command_faults(command: Command) -> Iterator[str]:
    if not command.help.strip():
        yield "help is empty, but `vila --help` shows it"
    try:
        inspect.signature(command.load).bind()
    except TypeError as error:
        yield f"load must take no argument: {error}"


def _callback_faults(factory: CallbackFactory) -> Iterator[str]:
    try:
        inspect.signature(factory.build).bind()
    except TypeError as error:
        yield f"build must take no argument (on_start gets the run): {error}"


def _template_faults(template: ChatTemplate) -> Iterator[str]:
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    try:
        text = template.render(
            [Turn("user", "first"), Turn("assistant", "second"), Turn("user", "third")], special_tokens
        )
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and it is reported
        yield f"render raises {type(error).__name__}: {error}"
        return
    if not all(word in text for word in ("first", "second", "third")):
        yield f"render omits the text of a turn: {text!r}"


def _format_faults(form: CheckpointFormat) -> Iterator[str]:
    try:
        inspect.signature(form.write).bind(None, None, max_shard_bytes=None)
    except TypeError as error:
        yield f"write must take checkpoint, path and the keyword max_shard_bytes: {error}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "with_config").mkdir()
        (folder / "with_config" / "config.json").write_text("{}")
        for path in (folder / "missing", folder, folder / "with_config"):
            try:
                if form.detect(path):
                    kind = "a missing folder" if path.name == "missing" else "a folder without the format's files"
                    yield f"detect returns True for {kind}"
            except Exception as error:  # noqa: BLE001 - as above
                yield f"detect must not raise; got {type(error).__name__}: {error}"


_CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "vila_vision_towers": _component_faults,
    "vila_projectors": _component_faults,
    "vila_media_encoders": _component_faults,
    "vila_language_models": _component_faults,
    "vila_generation_heads": _component_faults,
    "vila_chat_templates": _template_faults,
    "vila_checkpoint_formats": _format_faults,
    "vila_callbacks": _callback_faults,
    "vila_commands": _command_faults,
}


def _faults(hook: str, entry: Registered[Any]) -> Iterator[str]:
    if hook in _CHECKS:
        yield from (f"{hook}() '{entry.name}': {fault}" for fault in _CHECKS[hook](entry.item))
