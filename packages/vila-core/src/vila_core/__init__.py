"""VILA Kit's core: load any VILA-family checkpoint and talk to it.

    import vila_core as vila

    model = vila.load()
    model.generate(["What is in this picture?", vila.Image("cat.png")])

Names are imported on first use, so that `import vila_core` is fast and does not import torch.
"""

from typing import TYPE_CHECKING

from vila_core.errors import VilaError
from vila_core.plugins.lazy import lazy_attributes

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


__getattr__ = lazy_attributes("vila_core", _HOME)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
