"""Objects that are imported on first use, which keeps plugin modules, `--help` and `import vila_core` fast.

lazy_function("vila_core.towers.siglip:SiglipTower")   # a function that imports SiglipTower when it is called

with optional_import("WUPS", "vila-eval[wups]"):
    import nltk                                         # if missing: an error with the pip command
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vila_core.errors import MissingDependencyError

if TYPE_CHECKING:
    from vila_core.checkpoint import Checkpoint, Quantization, TensorEntry
    from vila_core.plugins.hookspecs import CheckpointFormat


def import_object(target: str) -> Any:
    """Import and return the object named by `target`, written "package.module:name" as in entry points."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def lazy_function(target: str) -> Callable[..., Any]:
    """Return a function that imports `target` when it is called, and calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return import_object(target)(*args, **kwargs)

    return call


def lazy_object(target: str) -> Callable[[], Any]:
    """Return a function without parameters that imports and returns `target`, such as the `load` of a `Command`."""
    return lambda: import_object(target)


def lazy_attributes(
    package: str, homes: Mapping[str, str], instead: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """Return a module-level `__getattr__`.

    Args:
        package: the module's name.
        homes: public names -> the submodules of `package` that define them.
        instead: names of other libraries -> what to use instead, as a sentence.
    """

    def get_attribute(name: str) -> Any:
        if name not in homes:
            hint = f". {instead[name]}" if instead is not None and name in instead else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get_attribute


@contextmanager
def optional_import(needed_for: str, extra: str, package: str | None = None) -> Generator[None]:
    """Turn a failed import in the `with` block into a `MissingDependencyError` that says what to install.

    Args:
        needed_for: the feature that needs the package; the subject of the message.
        extra: what to install, such as "vila-eval[wups]".
        package: the name to show; None shows the module that is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(package or error.name or extra, needed_for, extra) from None


@runtime_checkable
class QuantizedFormat(Protocol):
    """What a checkpoint format for quantized weights may have besides reading and writing folders."""

    def quantization_of(self, entries: Mapping[str, TensorEntry]) -> Quantization:
        """Return how the weights with these headers are quantized. Raises `CheckpointError`."""
        ...


@dataclass(frozen=True)
class LazyFormat:
    """A checkpoint format that is imported when it is first used. `target` names its class, "package.module:Class"."""

    name: str
    target: str

    @cached_property
    def _format(self) -> CheckpointFormat:
        return import_object(self.target)()

    def detect(self, path: Path) -> bool:
        return self._format.detect(path)

    def read(self, path: Path) -> Checkpoint:
        return self._format.read(path)

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        self._format.write(checkpoint, path, max_shard_bytes=max_shard_bytes)


@dataclass(frozen=True)
class LazyQuantizedFormat(LazyFormat):
    """The same for a format of quantized weights (see `QuantizedFormat`)."""

    def quantization_of(self, entries: Mapping[str, TensorEntry]) -> Quantization:
        assert isinstance(self._format, QuantizedFormat)
        return self._format.quantization_of(entries)
