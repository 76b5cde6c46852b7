"""Core's own parts, registered through the same hooks as anyone's. Nothing heavy is imported until a part is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vila_core import config
from vila_core.plugins.hookspecs import CheckpointFormat, Command, Component, hookimpl
from vila_core.plugins.lazy_formats import LazyFormat, LazyShardedFormat

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate

VILA_HOOK_API = 1


def _when_built(module: str, name: str) -> Callable[[config.Config], Any]:
    """Return a factory that imports `vila_core.<module>` when it is called and hands the config to `name` there."""

    def build(component_config: config.Config) -> Any:
        return getattr(import_module(f"vila_core.{module}"), name)(component_config)

    return build


@hookimpl
def vila_vision_towers() -> Sequence[Component]:
    """Vision transformers."""
    return (
        Component("siglip", config.SiglipConfig, _when_built("towers.siglip", "SiglipTower")),
        Component("clip", config.ClipConfig, _when_built("towers.clip", "ClipTower")),
        Component("intern_vit", config.InternVitConfig, _when_built("towers.intern_vit", "InternVitTower")),
        Component("radio", config.RadioConfig, _when_built("towers.radio", "RadioTower")),
        Component("timm", config.TimmConfig, _when_built("towers.timm", "TimmTower")),
    )


@hookimpl
def vila_projectors() -> Sequence[Component]:
    """The reference's projector types."""
    return tuple(
        Component(name, config.ProjectorConfig, _when_built("projectors", "build_projector"))
        for name in config.PROJECTOR_NAMES
    )


@hookimpl
def vila_media_encoders() -> Sequence[Component]:
    """Blocks of tokens for images and videos."""
    return (
        Component("BasicImageEncoder", config.BasicImageEncoderConfig, _when_built("encoders", "BasicImageEncoder")),
        Component("BasicVideoEncoder", config.BasicVideoEncoderConfig, _when_built("encoders", "BasicVideoEncoder")),
        Component("TSPVideoEncoder", config.TSPVideoEncoderConfig, _when_built("encoders", "TSPVideoEncoder")),
    )


@hookimpl
def vila_language_models() -> Sequence[Component]:
    """The native decoder, and the adapter for any other."""
    return (
        Component("decoder", config.DecoderConfig, _when_built("language.decoder", "Decoder")),
        Component(
            "transformers", config.TransformersConfig, _when_built("language.transformers", "TransformersLanguageModel")
        ),
    )


@hookimpl
def vila_chat_templates() -> Sequence[ChatTemplate]:
    """The reference's templates; `auto` is the tokenizer's own."""
    from vila_core.chat import builtin_templates

    return tuple(builtin_templates())


@hookimpl
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """The layouts on disk."""
    return (
        LazyShardedFormat("vila", "vila_core.checkpoint.formats.vila", "VilaFormat"),
        LazyFormat("vila-remote", "vila_core.checkpoint.formats.vila_remote", "VilaRemoteFormat"),
        LazyShardedFormat("nvila", "vila_core.checkpoint.formats.nvila", "NvilaFormat"),
    )


def _command(module: str, name: str) -> Callable[[], Callable[..., Any]]:
    return lambda: getattr(import_module(f"vila_core.cli.{module}"), name)


@hookimpl
def vila_commands() -> Sequence[Command]:
    """The sub-commands of `vila`."""
    return (
        Command(
            "plugins",
            "List the plugins: distribution, version, hooks, and what did not load.",
            _command("plugins", "list_plugins"),
        ),
        Command(
            "doctor",
            "Check this machine: versions, GPU, what is missing and the command that mends it.",
            _command("doctor", "check_machine"),
        ),
        Command(
            "info",
            "Say what a checkpoint is: family, parts, parameters, memory, template, license.",
            _command("info", "describe_model"),
        ),
        Command("convert", "Write a checkpoint in another format.", _command("convert", "convert_checkpoint")),
    )
