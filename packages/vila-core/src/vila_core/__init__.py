"""VILA Kit's core: load any VILA-family checkpoint and talk to it.

    import vila_core as vila

    model = vila.load()
    model.generate(["What is in this picture?", vila.Image("cat.png")])

Names are imported on first use, so that `import vila_core` is fast and does not import torch.
"""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate, Message
    from vila_core.engine.completion import Completion
    from vila_core.engine.limits import EngineConfig
    from vila_core.errors import VilaError
    from vila_core.inspection import Inspection
    from vila_core.loading import load
    from vila_core.media import Image, MediaLimits, Video
    from vila_core.plugins.hookspecs import HOOK_API, Command, Component, hookimpl, hookspec
    from vila_core.runtime import Vila
    from vila_core.tower_loading import load_image_tokenizer

__version__ = "0.1.0"

__all__ = [
    "HOOK_API",
    "ChatTemplate",
    "Command",
    "Completion",
    "Component",
    "EngineConfig",
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
    "load_image_tokenizer",
]

_HOME = {
    "HOOK_API": "plugins.hookspecs",
    "ChatTemplate": "chat",
    "Command": "plugins.hookspecs",
    "Completion": "engine.completion",
    "Component": "plugins.hookspecs",
    "EngineConfig": "engine.limits",
    "Image": "media",
    "Inspection": "inspection",
    "MediaLimits": "media",
    "Message": "chat",
    "Video": "media",
    "Vila": "runtime",
    "VilaError": "errors",
    "hookimpl": "plugins.hookspecs",
    "hookspec": "plugins.hookspecs",
    "load": "loading",
    "load_image_tokenizer": "tower_loading",
}


_LOAD = "To load a model, use vila_core.load('owner/name')."
_LOADERS = ("from_pretrained", "AutoModel", "AutoProcessor", "AutoTokenizer", "load_model", "load_pretrained_model")
_INSTEAD = {
    **dict.fromkeys(_LOADERS, _LOAD),
    **dict.fromkeys(
        ("generate", "chat", "stream", "generate_content"),
        "Load a model first: model = vila_core.load('owner/name'), then model.generate(…).",
    ),
    **dict.fromkeys(
        ("conversation", "conv_templates"), "To choose a template: vila_core.load(…, chat_template='vicuna_v1')."
    ),
    **dict.fromkeys(("load_image", "Picture"), "An image of a prompt is vila_core.Image(source)."),
}

__getattr__ = lazy_attributes("vila_core", _HOME, _INSTEAD)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
