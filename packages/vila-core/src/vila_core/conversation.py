"""Prompts in all accepted forms -> a list of `Message`s whose parts are strings, `Image`s and `Video`s.

Dimensions: T frames, H height, W width (pixels).
"""

import itertools
import mimetypes
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import PIL.Image

from vila_core.chat import Message
from vila_core.content_parts import as_content_part
from vila_core.errors import PromptError, shown, warn
from vila_core.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Image, Video, open_media
from vila_core.media.sources import is_data_uri, is_url

Part = str | Image | Video
"""A part of a message, as the rest of the package knows it."""
PartLike = Part | PIL.Image.Image | npt.NDArray[Any] | os.PathLike[str] | Mapping[str, Any]
"""What users may write for a part: also a PIL image, an array ([H, W, 3], or [T, H, W, 3] for a video), a path, or a
content part of OpenAI or transformers, such as `{"type": "image", "path": "cat.png"}`."""
Prompt = PartLike | Message | Sequence[PartLike] | Sequence[Message | Mapping[str, Any]]
"""A text, a list of strings and media in order, or a conversation: a list of `Message`s or of message dicts such as
`{"role": "user", "content": […]}`."""

MAX_PARTS = 100_000
"""Limit on the parts of a prompt, so that an endless iterator is an error and not a hang."""


def as_messages(prompt: Prompt) -> list[Message]:
    """Return `prompt` as a conversation whose parts are strings, `Image`s and `Video`s.

    Paths in a content part are read: check the content parts of requests that you do not trust.

    Raises:
        PromptError: it is empty, mixes messages with parts, or contains anything else.
        MediaError: a medium has an impossible type or shape.
    """
    items = _items(prompt)
    are_messages = [_is_message(item) for item in items]
    if any(are_messages) and not all(are_messages):
        raise PromptError("A prompt is either a list of strings and media or a list of Messages, not both.")
    messages = [_as_message(item) for item in items] if any(are_messages) else [Message("user", _as_parts(items))]
    return require_content(messages)


def require_content(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation whose parts are strings, `Image`s and `Video`s. Raises `PromptError` if it is empty."""
    if not any(isinstance(part, Image | Video) or part.strip() for message in messages for part in parts_of(message)):
        raise PromptError("The prompt is empty. Give at least a text, an image or a video.")
    return list(messages)


def parts_of(message: Message) -> list[Part]:
    """Return the parts of a message that `as_messages` returned."""
    content = message.content
    return [content] if isinstance(content, str | Image | Video) else list(content)


def _items(prompt: object) -> list[object]:
    """Return the parts or messages of a prompt; anything that is not a collection is its only one."""
    if isinstance(prompt, str | bytes | bytearray | memoryview | Mapping | np.ndarray) or not isinstance(
        prompt, Iterable
    ):
        return [prompt]
    if isinstance(prompt, set | frozenset):
        raise PromptError("A prompt is a list of strings and media in order; a set has no order.")
    if _is_tensor(prompt):
        return [prompt]  # iterable, but refused as a part
    items = list(itertools.islice(cast("Iterable[object]", prompt), MAX_PARTS + 1))
    if len(items) > MAX_PARTS:
        raise PromptError(f"The prompt has more than {MAX_PARTS:,} parts. Join its texts.")
    return items


def _is_message(item: object) -> bool:
    return isinstance(item, Message) or (isinstance(item, Mapping) and ("role" in item or "from" in item))


def _as_message(item: object) -> Message:
    if isinstance(item, Message):
        return Message(item.role, _as_content(item.content), item.tool_calls)
    fields = cast("Mapping[str, Any]", item)
    if "role" not in fields or "content" not in fields:
        keys = ", ".join(repr(key) for key in fields)
        raise PromptError(f"A message dict has the keys 'role' and 'content', not {keys}.")
    content = "" if fields["content"] is None else fields["content"]
    role: Any = fields["role"]
    if not isinstance(role, str):
        raise PromptError(f"Unknown role {shown(role)}. Expected one of: system, user, assistant.")
    role = "system" if role == "developer" else role  # OpenAI's newer name
    return Message(role, _as_content(content))


def _as_content(content: object) -> list[Part]:
    return _as_parts(cast("Sequence[object]", content) if _is_list(content) else [content])


def _is_list(content: object) -> bool:
    return isinstance(content, list | tuple)


def _as_parts(items: Iterable[object]) -> list[Part]:
    return [_as_part(item) for item in items]


def _as_part(item: object) -> Part:
    """Return what users may write for a part as a string, `Image` or `Video`."""
    if isinstance(item, Image | Video):
        return item
    if isinstance(item, str):
        _warn_about_a_path(item)
        return item
    if isinstance(item, PIL.Image.Image):
        return Image(item)
    if isinstance(item, np.ndarray):
        return Video(item) if item.ndim == 4 else Image(item)
    if isinstance(item, os.PathLike):
        return open_media(cast("os.PathLike[str]", item))
    if isinstance(item, Mapping):
        return as_content_part(cast("Mapping[str, Any]", item))
    raise PromptError(_advice(item))


def _advice(item: object) -> str:
    """Return what is wrong with an object in a prompt, and what to write instead."""
    if item is None:
        return "The prompt contains None. Expected a text, an image or a video; does a function lack its `return`?"
    kind = type(item)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if isinstance(item, bytes | bytearray | memoryview):
        hint = "For the bytes of a file, write Image(data) or Video(data)."
    elif _is_tensor(item):
        hint = "Convert it to an array of height × width × 3: tensor.permute(1, 2, 0).cpu().numpy()."
    elif _is_list(item):
        hint = "A prompt is a flat list; generate_batch answers several prompts."
    else:
        hint = "Wrap pictures as Image(source) and numbers as str(number)."
    return f"A prompt holds texts, images and videos, not {name}. {hint}"


def _is_tensor(item: object) -> bool:
    import torch

    return isinstance(item, torch.Tensor)


def _warn_about_a_path(text: str) -> None:
    """Warn if a text is the name of a media file, which the model would read as text."""
    name = text.strip()
    if not name or len(name) > 4096 or "\n" in name:
        return
    if is_data_uri(name) or (is_url(name) and " " not in name and _is_media_name(name.split("?")[0])):
        kind, shown = ("a data: URI", f"{name[:40]}…") if is_data_uri(name) else ("the address of a media file", name)
    elif _is_media_file(name):
        kind, shown = "an existing media file", name
    else:
        return
    video = is_data_uri(name) and name.startswith("data:video")
    wrapper = "Video" if video or name.split("?")[0].lower().endswith(VIDEO_SUFFIXES) else "Image"
    path = "" if is_url(name) or is_data_uri(name) else f" or pathlib.Path({shown!r})"
    warn(
        f"The text {shown!r} names {kind}, but the model reads it as text. "
        f"To show the file to the model, pass vila_core.{wrapper}({shown!r}){path}."
    )


def _is_media_file(name: str) -> bool:
    try:
        if os.path.isfile(os.path.expanduser(name)):
            return _is_media_name(name)
        return os.sep in name and any(map(_is_media_name, os.listdir(os.path.expanduser(name))))  # a folder of frames
    except (OSError, ValueError):  # no such file, or an impossible name
        return False


def _is_media_name(name: str) -> bool:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith(("image/", "video/")) or name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
