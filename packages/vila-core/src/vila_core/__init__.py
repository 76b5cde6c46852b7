"""VILA Kit's core: load any VILA-family checkpoint and talk to it.

    import vila_core as vila

    model = vila.load()
    model.generate(["What is in this picture?", vila.Image("cat.png")])

Names are imported on first use, so that `import vila_core` stays cheap and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vila_core.errors import VilaError

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate, Message
    from vila_core.engine.completion import Completion
    from vila_core.loading import load
    from vila_core.media import Image, MediaLimits, Video
    from vila_core.plugins.hookspecs import HOOK_API, Command, Component, hookimpl, hookspec
    from vila_core.runtime import Inspection, Vila

__version__ = "0.1.0"

__all__ = [
    "HOOK_API",
    "ChatTemplate",
    "Command",
    "Completion",
    "Component",
    "Image",
    "Inspection",
    "MediaLimits",
    "Message",
    "Video",
    "Vila",
    "VilaError",
    "hookimpl",
    "hookspec",
    "load",
]

_HOME = {
    "HOOK_API": "plugins.hookspecs",
    "ChatTemplate": "chat",
    "Command": "plugins.hookspecs",
    "Completion": "engine.completion",
    "Component": "plugins.hookspecs",
    "Image": "media",
    "Inspection": "runtime",
    "MediaLimits": "media",
    "Message": "chat",
    "Video": "media",
    "Vila": "runtime",
    "hookimpl": "plugins.hookspecs",
    "hookspec": "plugins.hookspecs",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vila_core' has no attribute '{name}'")
    return getattr(import_module(f"vila_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
