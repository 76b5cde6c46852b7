"""Content parts of other chat APIs: the dicts in a message of OpenAI, transformers, Qwen or Anthropic.

{"type": "text", "text": "What is this?"}
{"type": "image", "image": picture}                      # also "url", "path", "base64"
{"type": "image_url", "image_url": {"url": "https://…"}}
{"type": "video", "video": "walk.mp4", "fps": 1.0}       # also "url", "path", "base64"; "nframes" or "num_frames"
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from vila_core.errors import PromptError, shown, unknown_name, warn
from vila_core.media import Image, Video

TEXTS = ("text", "input_text", "output_text")
IMAGES = ("image", "image_url", "input_image")
VIDEOS = ("video", "video_url", "input_video")
SOURCE_KEYS = ("url", "path", "base64", "source", "data")
FRAME_KEYS = ("nframes", "num_frames", "frames")
WITHOUT_EFFECT = ("detail", "cache_control", "format", "media_type", "mime_type", "id", "uuid", "name", "annotations")
"""Keys that say nothing about the pixels that the model reads."""


def as_content_part(part: Mapping[str, Any]) -> str | Image | Video:
    """Return a content part as a string, `Image` or `Video`.

    Raises:
        PromptError: the type is unknown, or the part has no content.
        MediaError: the medium has an impossible type.
    """
    stated = part.get("type")
    if not isinstance(stated, str | None):
        raise PromptError(f"The type of a content part is a string such as 'text' or 'image', not {shown(stated)}.")
    kind = stated or _guess_type(part)
    if kind in TEXTS:
        text = part.get("text", part.get("content"))
        if not isinstance(text, str):
            raise PromptError(f"A content part of type '{kind}' needs a 'text', got the keys {_keys(part)}.")
        return text
    if kind in IMAGES:
        _warn_about_other_keys(part, (*IMAGES, *SOURCE_KEYS))
        return Image(_source(part, IMAGES))
    if kind in VIDEOS:
        _warn_about_other_keys(part, (*VIDEOS, *SOURCE_KEYS, *FRAME_KEYS, "fps"))
        frames = next((part[key] for key in FRAME_KEYS if part.get(key) is not None), None)
        return Video(_source(part, VIDEOS), frames=frames, fps=part.get("fps"))
    if kind is None:
        raise PromptError(
            f"A content part needs a 'type' of text, image, image_url, video or video_url; got the keys {_keys(part)}. "
            "A message needs 'role' and 'content'."
        )
    raise PromptError(unknown_name("type of content part", str(kind), (*TEXTS[:1], *IMAGES[:2], *VIDEOS[:2])))


def _guess_type(part: Mapping[str, Any]) -> str | None:
    """Return the type of a part that does not state it, such as `{"text": "Hello"}` or `{"image": picture}`."""
    named = [key for key in ("text", *IMAGES, *VIDEOS) if key in part]
    return named[0] if len(named) == 1 else None


def _source(part: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the picture or video of a part: under the name of its type or a general key, perhaps one level deeper."""
    found = [part[key] for key in (*names, *SOURCE_KEYS) if part.get(key) is not None]
    if not found:
        raise PromptError(
            f"A content part of type '{part.get('type', names[0])}' has no {names[0]}: put it under '{names[0]}', "
            "'url', 'path' or 'base64'."
        )
    source = found[0]
    is_base64 = part.get("base64") is source
    if isinstance(source, Mapping):
        inner = cast("Mapping[str, Any]", source)
        media_type = str(inner.get("media_type", ""))
        source = next((inner[key] for key in ("url", "path", "data", "base64") if inner.get(key) is not None), None)
        is_base64 = str(inner.get("type")) == "base64" or inner.get("base64") is not None
        if source is None:
            raise PromptError(f"A content part names its {names[0]} as {{'url': …}}, got the keys {_keys(inner)}.")
    else:
        media_type = str(part.get("media_type", ""))
    if not isinstance(source, str):
        return source
    if is_base64 and not source.startswith("data:"):
        return f"data:{media_type or ('image/png' if names is IMAGES else 'video/mp4')};base64,{source}"
    return Path(unquote(source.removeprefix("file://"))) if source.startswith("file://") else source


def _warn_about_other_keys(part: Mapping[str, Any], known: tuple[str, ...]) -> None:
    other = [key for key, value in part.items() if key not in (*known, "type", *WITHOUT_EFFECT) and value is not None]
    if other:
        warn(
            f"Content part of type '{part.get('type')}': {', '.join(map(repr, other))} has no effect. "
            "Preprocessing is set when the model is loaded, such as vila_core.load(…, max_tiles=6)."
        )


def _keys(part: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(key)) for key in part) or "none"
