"""Which requests belong together: those whose media or first messages are the same.

A replica keeps the tokens of media and the KV cache of prompts that it has seen. A second question about a picture is
answered sooner where the first one was.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

MEDIA_PARTS = ("image_url", "video_url", "input_image", "input_video")


def affinity_key(body: bytes) -> str:
    """Return the key of a request body: equal keys for requests that should share a replica.

    It is made of the first medium of the conversation. Without media, of the messages up to the first of the user, so
    that the turns of a conversation stay together. Anything that is not a conversation gets the key of its bytes.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):  # the replica will answer with the error
        return _digest(body)
    if not isinstance(request, dict):
        return _digest(body)
    messages = request.get("messages", request.get("input"))
    if not isinstance(messages, list):
        return _digest(body)
    for medium in _media(messages):
        return _digest(json.dumps(medium, sort_keys=True).encode())
    return _digest(json.dumps(_beginning(messages), sort_keys=True).encode())


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


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
