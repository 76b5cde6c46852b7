"""Objects that are imported on first use, which keeps plugin modules, `--help` and `import vila_core` fast.

lazy_function("vila_core.towers.siglip:SiglipTower")   # a function that imports SiglipTower when it is called

with optional_import("WUPS", "vila-eval[wups]"):
    import nltk                                         # if missing: an error with the pip command
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


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
        from vila_core.errors import MissingDependencyError  # not above: `import vila_core` imports this module

        raise MissingDependencyError(package or error.name or extra, needed_for, extra) from None
