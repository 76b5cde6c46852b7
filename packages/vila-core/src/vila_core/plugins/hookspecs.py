"""All hooks for plugins, on one page. Implement any of them with `vila_core.hookimpl` and register the module:

    [project.entry-points.vila]
    my_plugin = "my_package.plugin"

Each hook returns a sequence. Hooks are cheap: a plugin module imports neither torch nor triton; heavy imports
happen inside the factories (`build`, `read`, `load` …) of the returned objects.

The return type of each hook is a class or protocol of vila_core. It has the members that vila_core reads or checks.
If a sibling distribution reads the objects, the docstring names the sibling's full interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    from vila_core.runtime import Vila

HOOK_API = 2
"""Version of the hooks; incremented when a change breaks plugins.

2: `CheckpointFormat.write` takes `max_shard_bytes`; the unused hooks in `REMOVED_HOOKS` are gone.
"""

REMOVED_HOOKS = ("vila_trainers", "vila_serving_backends")
"""Hooks of API 1 that nothing read."""

hookspec = pluggy.HookspecMarker("vila")
hookimpl = pluggy.HookimplMarker("vila")


@dataclass(frozen=True)
class Component:
    """A named component of a model: `build(config)` returns a `torch.nn.Module` without weights."""

    name: str
    config_type: type[Config]
    build: Callable[..., Any]


@runtime_checkable
class CheckpointFormat(Protocol):
    """An on-disk format. Reading never executes code from the checkpoint; a failed write leaves nothing behind."""

    @property
    def name(self) -> str: ...

    def detect(self, path: Path) -> bool:
        """Return whether the folder at `path` has this format. Raises nothing."""
        ...

    def read(self, path: Path) -> Checkpoint:
        """Read the config and the index of the weights, but no tensors. Raises `CheckpointError`."""
        ...

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        """Write `checkpoint` to the new folder `path`.

        Args:
            checkpoint: read from any format.
            path: does not exist yet, or is empty.
            max_shard_bytes: size limit of each weights file; None is the format's default.

        Raises:
            CheckpointError: the format cannot represent the checkpoint, or cannot limit the size of its files.
        """
        ...


class Named(Protocol):
    """An object with a name, as every registered object is."""

    @property
    def name(self) -> str: ...


@runtime_checkable
class Quantizer(Protocol):
    """A method that quantizes a decoder block; `vila_quant.awq.method.BlockQuantizer` is the full interface."""

    @property
    def name(self) -> str: ...

    @property
    def quantize_block(self) -> Callable[..., Any]: ...


@runtime_checkable
class Kernel(Protocol):
    """A product of activations and packed weights; `vila_quant.kernels.MatmulKernel` is the full interface."""

    @property
    def name(self) -> str: ...

    @property
    def refusal(self) -> Callable[..., str | None]: ...

    @property
    def pack(self) -> Callable[..., Any]: ...

    @property
    def multiply(self) -> Callable[..., Any]: ...


@runtime_checkable
class Recipe(Protocol):
    """A named configuration of a training run; `vila_train.recipes.Recipe` is the full interface."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def build(self) -> Callable[..., Any]: ...


@runtime_checkable
class CallbackFactory(Protocol):
    """Makes an object that follows training; `vila_train.callbacks.CallbackFactory` is the full interface."""

    @property
    def name(self) -> str: ...

    @property
    def build(self) -> Callable[[], Any]: ...


@runtime_checkable
class EvaluationTask(Protocol):
    """A task that can score a loaded model, as training asks between its steps; `vila_eval.Task` is one."""

    @property
    def name(self) -> str: ...

    def evaluator(
        self, cache: Path, *, limit: int | None = None, mirror: Path | None = None, offline: bool = False
    ) -> Callable[[Vila], Mapping[str, float]]:
        """Open the data, and return a function that scores a model and returns its measures by name.

        Args:
            cache: folder for downloads.
            limit: number of rows; None: all.
            mirror: folder with copies of hub repositories.
            offline: download nothing.
        """
        ...


@dataclass(frozen=True)
class Command:
    """A subcommand of `vila`: `load()` returns a typer app or a function for typer."""

    name: str
    help: str
    load: Callable[[], typer.Typer | Callable[..., Any]]


@hookspec
def vila_vision_towers() -> Sequence[Component]:
    """Vision towers: `build(config)` -> Module, `pixels [N, 3, H, W]` -> `features [N, P, D_v]`."""
    return ()


@hookspec
def vila_projectors() -> Sequence[Component]:
    """Projectors: `build(config)` -> Module, `[N, P, D_v]` -> `[N, P', D]`."""
    return ()


@hookspec
def vila_media_encoders() -> Sequence[Component]:
    """Media encoders: `build(config)` -> Module as in `vila_core.encoders`, one medium -> token block `[T, D]`."""
    return ()


@hookspec
def vila_language_models() -> Sequence[Component]:
    """Language models: `build(config)` -> Module with the interface of `vila_core.language.LanguageModel`."""
    return ()


@hookspec
def vila_generation_heads() -> Sequence[Component]:
    """Generation heads: `build(config)` -> Module with the interface of `vila_core.generation.heads.HeadModule`."""
    return ()


@hookspec
def vila_chat_templates() -> Sequence[ChatTemplate]:
    """Chat templates."""
    return ()


@hookspec
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """On-disk formats."""
    return ()


@hookspec
def vila_quantizers() -> Sequence[Quantizer]:
    """Quantization methods. Full interface: `vila_quant.awq.method.BlockQuantizer`."""
    return ()


@hookspec
def vila_kernels() -> Sequence[Kernel]:
    """Kernels that multiply by packed weights. Full interface: `vila_quant.kernels.MatmulKernel`."""
    return ()


@hookspec
def vila_datasets() -> Sequence[Dataset]:
    """Datasets for training, quantization and evaluation."""
    return ()


@hookspec
def vila_recipes() -> Sequence[Recipe]:
    """Recipes of training. Full interface: `vila_train.recipes.Recipe`."""
    return ()


@hookspec
def vila_callbacks() -> Sequence[CallbackFactory]:
    """Callbacks of training, which `logging.callbacks` names. `build()` returns a `vila_train.callbacks.Callback`."""
    return ()


@hookspec
def vila_tasks() -> Sequence[Named]:
    """Evaluation tasks. Full interface: `vila_eval.task.Task`. Training uses those that are `EvaluationTask`s."""
    return ()


@hookspec
def vila_metrics() -> Sequence[Named]:
    """Evaluation metrics. Full interface: `vila_eval.metric.Metric`."""
    return ()


@hookspec
def vila_commands() -> Sequence[Command]:
    """Subcommands of `vila`."""
    return ()
