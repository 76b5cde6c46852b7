"""Core's own components, registered through the same hooks as third-party plugins and imported on first use.

The configs import pydantic, so each hook imports them itself: `vila --help` calls only `vila_commands`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core.plugins.hookspecs import CheckpointFormat, Command, Component, hookimpl
from vila_core.plugins.lazy import import_object, lazy_function, lazy_object
from vila_core.plugins.lazy_formats import LazyFormat

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate

VILA_HOOK_API = 2


@hookimpl
def vila_vision_towers() -> Sequence[Component]:
    """Vision transformers."""
    from vila_core import config

    return (
        Component("siglip", config.SiglipConfig, lazy_function("vila_core.towers.siglip:SiglipTower")),
        Component("clip", config.ClipConfig, lazy_function("vila_core.towers.clip:ClipTower")),
        Component("intern_vit", config.InternVitConfig, lazy_function("vila_core.towers.intern_vit:InternVitTower")),
        Component("radio", config.RadioConfig, lazy_function("vila_core.towers.radio:RadioTower")),
        Component("timm", config.TimmConfig, lazy_function("vila_core.towers.timm:TimmTower")),
        Component("rq-siglip", config.RQSiglipConfig, lazy_function("vila_core.towers.rq_siglip.tower:RQSiglipTower")),
    )


@hookimpl
def vila_projectors() -> Sequence[Component]:
    """The projectors of the reference implementation."""
    from vila_core import config

    return tuple(
        Component(name, config.ProjectorConfig, lazy_function("vila_core.projectors:build_projector"))
        for name in config.PROJECTOR_NAMES
    )


@hookimpl
def vila_media_encoders() -> Sequence[Component]:
    """Encoders that make the token block of an image or a video."""
    from vila_core import config

    return (
        Component(
            "BasicImageEncoder", config.BasicImageEncoderConfig, lazy_function("vila_core.encoders:BasicImageEncoder")
        ),
        Component(
            "BasicVideoEncoder", config.BasicVideoEncoderConfig, lazy_function("vila_core.encoders:BasicVideoEncoder")
        ),
        Component("TSPVideoEncoder", config.TSPVideoEncoderConfig, lazy_function("vila_core.encoders:TSPVideoEncoder")),
    )


@hookimpl
def vila_language_models() -> Sequence[Component]:
    """The native decoder, and the adapter for other transformers models."""
    from vila_core import config

    return (
        Component("decoder", config.DecoderConfig, lazy_function("vila_core.language.decoder:Decoder")),
        Component(
            "transformers",
            config.TransformersConfig,
            lazy_function("vila_core.language.transformers:TransformersLanguageModel"),
        ),
    )


@hookimpl
def vila_generation_heads() -> Sequence[Component]:
    """Heads that draw images and videos."""
    from vila_core import config

    return (
        Component(
            "depth-transformer",
            config.DepthTransformerConfig,
            lazy_function("vila_core.generation.depth_transformer:DepthTransformer"),
        ),
    )


@hookimpl
def vila_chat_templates() -> Sequence[ChatTemplate]:
    """The templates of the reference implementation; `auto` is the tokenizer's own."""
    return tuple(import_object("vila_core.chat:builtin_templates")())


@hookimpl
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """On-disk formats."""
    return (
        LazyFormat("vila-u", "vila_core.checkpoint.formats.vila_u:VilaUFormat"),
        LazyFormat("vila", "vila_core.checkpoint.formats.vila:VilaFormat"),
        LazyFormat("vila-remote", "vila_core.checkpoint.formats.vila_remote:VilaRemoteFormat"),
        LazyFormat("nvila", "vila_core.checkpoint.formats.nvila:NvilaFormat"),
    )


@hookimpl
def vila_commands() -> Sequence[Command]:
    """Subcommands of `vila`."""
    return (
        Command("infer", "Ask a model about images and videos (vila-infer).", lazy_object("vila_core.cli.infer:app")),
        Command("chat", "Talk with a model in the terminal.", lazy_object("vila_core.cli.chat:chat")),
        Command(
            "plugins",
            "List the plugins: distribution, version, hooks, and what did not load.",
            lazy_object("vila_core.cli.plugins:list_plugins"),
        ),
        Command(
            "doctor",
            "Check this machine: versions, GPU, what is missing, and the command that fixes it.",
            lazy_object("vila_core.cli.doctor:check_machine"),
        ),
        Command(
            "info",
            "Describe a checkpoint: family, parts, parameters, memory, template, license.",
            lazy_object("vila_core.cli.info:describe_model"),
        ),
        Command(
            "bench",
            "Measure decoding, first token and prefill, beside the limits of this machine.",
            lazy_object("vila_core.cli.bench:measure_speed"),
        ),
        Command(
            "convert", "Write a checkpoint in another format.", lazy_object("vila_core.cli.convert:convert_checkpoint")
        ),
        Command(
            "tokenize-image",
            "Turn pictures into codes and back, with a model that draws.",
            lazy_object("vila_core.cli.tokenize_image:tokenize_image"),
        ),
        Command(
            "export",
            "Write a folder that SGLang or TensorRT-LLM serves.",
            lazy_object("vila_core.cli.export:export_checkpoint"),
        ),
    )
