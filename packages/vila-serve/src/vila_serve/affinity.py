"""Groups requests whose first media or messages are the same, so that one replica answers them.

A replica keeps the tokens of media and the KV cache of prompts that it has seen. A second question about a picture is
answered sooner where the first one was.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

MEDIA_PARTS = ("image_url", "video_url", "input_image", "input_video")


def affinity_key(request: Any) -> str:
    """Return the key of a request's JSON value: equal keys for requests that should share a replica.

    It is made of the first medium of the conversation. Without media, of the messages up to the first of the user, so
    that the turns of a conversation stay together. Pictures are drawn where others of the same prompt were. Anything
    else gets the key of the whole value.
    """
    fields = request if isinstance(request, dict) else {}
    messages = fields.get("messages", fields.get("input"))
    if not isinstance(messages, list):
        return _digest(fields.get("prompt", request))
    for medium in _media(messages):
        return _digest(medium)
    return _digest(_beginning(messages))


def _media(messages: list[Any]) -> Iterator[Any]:
    """Yield the URLs of the media of all messages, in order."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in MEDIA_PARTS:
                medium = part.get(kind.replace("input_image", "image_url").replace("input_video", "video_url"))
                yield medium.get("url") if isinstance(medium, dict) else medium


def _beginning(messages: list[Any]) -> list[Any]:
    """Return the messages up to the first of the user."""
    for index, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return messages[: index + 1]
    return messages


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
