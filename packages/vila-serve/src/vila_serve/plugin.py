"""The plugin of vila-serve: the command `vila serve`. It imports neither torch nor fastapi."""

from __future__ import annotations

from collections.abc import Sequence

from vila_core import Command, hookimpl
from vila_core.plugins.lazy import lazy_object

VILA_HOOK_API = 2


@hookimpl
def vila_commands() -> Sequence[Command]:
    """Return `vila serve`."""
    return (Command("serve", "Serve a model: OpenAI-compatible API and chat page.", lazy_object("vila_serve.cli:app")),)
