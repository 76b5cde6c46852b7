"""The whole extension surface, one page. Implement any of these with `vila_core.hookimpl` and register the module:

    [project.entry-points.vila]
    my_plugin = "my_package.plugin"

Each hook returns a sequence. Hooks are cheap: a plugin module imports neither torch nor triton; heavy imports
happen inside the factories (`build`, `read`, `run` …) that the returned objects carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pluggy

if TYPE_CHECKING:
    import typer

    from vila_core.chat import ChatTemplate
    from vila_core.checkpoint import Checkpoint
    from vila_core.config import Config
    from vila_core.plugins.datasets import Dataset

HOOK_API = 1
"""Version of this page. It grows by one when a hook changes in a way that breaks plugins."""

hookspec = pluggy.HookspecMarker("vila")
hookimpl = pluggy.HookimplMarker("vila")


@dataclass(frozen=True)
class Component:
    """A named part of a model: `build(config)` imports what it needs and returns a `torch.nn.Module` without weights."""

    name: str
    config_type: type[Config]
    build: Callable[..., Any]


@runtime_checkable
class CheckpointFormat(Protocol):
    """One on-disk layout. Reading never executes anything of the checkpoint; writing is whole or not at all."""

    @property
    def name(self) -> str: ...

    def detect(self, path: Path) -> bool:
        """Return whether the folder at `path` has this layout. Raises nothing."""
        ...

    def read(self, path: Path) -> Checkpoint:
        """Read config and index of the weights (no tensor yet). Raises `CheckpointError`."""
        ...

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        """Write `checkpoint` to the new folder `path`. Raises `CheckpointError` where the layout cannot hold it."""
        ...


class Named(Protocol):
    """What every registered object has."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Command:
    """A sub-command of `vila`: `load()` returns a typer app or a function for typer."""

    name: str
    help: str
    load: Callable[[], typer.Typer | Callable[..., Any]]


# ---------------------------------------------------------------------------------------- parts of a model


@hookspec
def vila_vision_towers() -> Sequence[Component]:
    """Towers: `build(config)` -> Module, `pixels [N, 3, H, W]` -> `features [N, P, D_v]`."""
    return ()


@hookspec
def vila_projectors() -> Sequence[Component]:
    """Projectors: `build(config)` -> Module, `[N, P, D_v]` -> `[N, P', D]`."""
    return ()


@hookspec
def vila_media_encoders() -> Sequence[Component]:
    """Media encoders: `build(config)` -> Module like those of `vila_core.encoders`, one medium's tokens -> its block `[T, D]`."""
    return ()


@hookspec
def vila_language_models() -> Sequence[Component]:
    """Language models: `build(config)` -> Module with the interface of `vila_core.language.LanguageModel`."""
    return ()


@hookspec
def vila_chat_templates() -> Sequence[ChatTemplate]:
    """Chat templates, by name."""
    return ()


@hookspec
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """On-disk layouts."""
    return ()


# ---------------------------------------------------------------------------------------- the life of a model


@hookspec
def vila_quantizers() -> Sequence[Named]:
    """Quantizers: `name` and `quantize_block`, the interface of `vila_quant.awq.method.BlockQuantizer`."""
    return ()


@hookspec
def vila_kernels() -> Sequence[Named]:
    """Matrix-product kernels: `name`, `target`, `priority`, `refusal`, `pack`, `multiply`: `vila_quant.kernels.MatmulKernel`."""
    return ()


@hookspec
def vila_trainers() -> Sequence[Named]:
    """Trainers."""
    return ()


@hookspec
def vila_recipes() -> Sequence[Named]:
    """Named stage configs: plain functions that return a config."""
    return ()


@hookspec
def vila_datasets() -> Sequence[Dataset]:
    """Datasets that training, quantization and evaluation read."""
    return ()


@hookspec
def vila_tasks() -> Sequence[Named]:
    """Evaluation tasks."""
    return ()


@hookspec
def vila_metrics() -> Sequence[Named]:
    """Evaluation metrics."""
    return ()


@hookspec
def vila_serving_backends() -> Sequence[Named]:
    """Serving backends: the native engine, external engines."""
    return ()


@hookspec
def vila_commands() -> Sequence[Command]:
    """Sub-commands of `vila`."""
    return ()
