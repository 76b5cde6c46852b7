"""Whether a module is still what it was when a faster form of it was made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class ModuleState:
    """What a module consists of: submodules, parameters, buffers and hooks."""

    def __init__(self, root: nn.Module):
        modules = list(root.modules())
        self._hooks: list[dict[int, Any]] = [
            hooks
            for module in modules[1:]
            for hooks in (module._forward_hooks, module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        ]
        self._children = [(module._modules, name, child) for module in modules for name, child in _children(module)]  # pyright: ignore[reportPrivateUsage]
        self._tensors = [
            (kept, name, tensor, tensor.data_ptr(), _version(tensor))
            for module in modules
            for kept in (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
            for name, tensor in kept.items()
            if tensor is not None
        ]

    def is_current(self) -> bool:
        """Return whether nothing was replaced or written to, and no submodule has a hook."""
        # Plain loops: this runs for every picture, and generators take three times as long.
        for hooks in self._hooks:
            if hooks:
                return False
        for kept, name, child in self._children:
            if kept[name] is not child:
                return False
        for kept, name, tensor, place, version in self._tensors:
            if kept.get(name) is not tensor or tensor.data_ptr() != place:
                return False
            if version is not None and tensor._version != version:  # pyright: ignore[reportPrivateUsage]
                return False
        return True


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, child) for name, child in module._modules.items() if child is not None)  # pyright: ignore[reportPrivateUsage]


def _version(tensor: Tensor) -> int | None:
    """Return how often `tensor` was written to; None if it does not say, since it was made in inference mode."""
    try:
        return tensor._version  # pyright: ignore[reportPrivateUsage]
    except RuntimeError:
        return None
