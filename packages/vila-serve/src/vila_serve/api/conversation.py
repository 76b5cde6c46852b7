"""From the messages of a request to the conversation that the model reads."""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from vila_core import Image, Message, Video
from vila_core.chat import ChatTemplate, Role, SeparatorTemplate, ToolCall
from vila_core.errors import MediaError
from vila_serve.api.errors import ApiError
from vila_serve.api.schemas.chat import AssistantMessage, ChatMessage, SystemMessage
from vila_serve.api.schemas.parts import (
    AnyPart,
    ImagePart,
    InputImagePart,
    InputVideoPart,
    RefusalPart,
    TextPart,
    VideoPart,
)
from vila_serve.api.tools import check_tool_messages, read_arguments
from vila_serve.media import MediaDoor

Part = str | Image | Video
Result = TypeVar("Result")


async def read_conversation(
    messages: Sequence[ChatMessage],
    media: MediaDoor,
    template: ChatTemplate,
    max_media: int,
    places: Sequence[str] | None = None,
) -> list[Message]:
    """Open the media of a request and return its conversation.

    Neighboring messages of the same role become one, since models are trained on turns. `places` name the messages in
    errors, as fields of the request.

    Raises:
        ApiError: there are too many media, one cannot be opened, or the model's template has no room for a system
            message or a tool.
    """
    _check_template(messages, template)
    places = places or [f"messages[{index}]" for index in range(len(messages))]
    opened = iter(await _open_media(messages, places, media, max_media))
    turns: list[tuple[Role, list[Part], list[ToolCall]]] = []
    for message in messages:
        role = _role(message)
        own = [next(opened) if (text := _text_of(part)) is None else text for _, part in _parts_of(message)]
        if turns and turns[-1][0] == role != "tool":
            turns[-1][1].extend(["\n", *own])
            turns[-1][2].extend(_tool_calls(message))
        else:
            turns.append((role, own or [""], _tool_calls(message)))
    return [Message(*turn) for turn in turns]


def _check_template(messages: Sequence[ChatMessage], template: ChatTemplate) -> None:
    if isinstance(template, SeparatorTemplate) and any(isinstance(message, SystemMessage) for message in messages):
        raise ApiError(
            400,
            f"The model's chat template '{template.name}' has a fixed system prompt and no room for a system message. "
            "Put the instructions at the beginning of the first user message.",
            param="messages",
        )
    check_tool_messages(messages, template)


def _tool_calls(message: ChatMessage) -> list[ToolCall]:
    calls = message.tool_calls or () if isinstance(message, AssistantMessage) else ()
    return [ToolCall(call.function.name, read_arguments(call, "messages")) for call in calls]


def _role(message: ChatMessage) -> Role:
    return "system" if isinstance(message, SystemMessage) else message.role


async def _open_media(
    messages: Sequence[ChatMessage], places: Sequence[str], media: MediaDoor, max_media: int
) -> list[Image | Video]:
    """Open the images and videos of all messages together. Raises `ApiError`."""
    parts = [
        (f"{place}.{own}", part)
        for place, message in zip(places, messages, strict=True)
        for own, part in _parts_of(message)
        if _text_of(part) is None
    ]
    if len(parts) > max_media:
        raise ApiError(
            400,
            f"The request has {len(parts)} images and videos; this server takes at most {max_media}.",
            param="messages",
        )
    return await _all_or_nothing([_open_at(place, part, media) for place, part in parts])


def _parts_of(message: ChatMessage) -> list[tuple[str, AnyPart]]:
    """Return the parts of a message, the pictures of an answer after its text, each with its place in the message."""
    parts: list[tuple[str, AnyPart]] = [(f"content[{at}]", part) for at, part in enumerate(message.content or ())]
    if isinstance(message, AssistantMessage):
        parts += [(f"images[{at}]", part) for at, part in enumerate(message.images or ())]
    return parts


def _text_of(part: AnyPart) -> str | None:
    """Return the text of a part, None for an image or a video."""
    return part.text if isinstance(part, TextPart) else part.refusal if isinstance(part, RefusalPart) else None


async def _open_at(place: str, part: AnyPart, media: MediaDoor) -> Image | Video:
    """Return an opened part. An error says which part it is."""
    try:
        return await _open(part, media)
    except MediaError as error:
        raise ApiError(400, f"{place}: {error}", param=place, code="invalid_media") from None


async def _open(part: AnyPart, media: MediaDoor) -> Image | Video:
    if isinstance(part, ImagePart):
        return await media.open_image(part.image_url.url, part.image_url.detail)
    if isinstance(part, InputImagePart):
        if part.image_url is None:
            raise ApiError(400, "An 'input_image' needs 'image_url'; this server keeps no files.", param="input")
        return await media.open_image(part.image_url, part.detail)
    if isinstance(part, InputVideoPart):
        return await media.open_video(part.video_url, part.frames, part.fps)
    assert isinstance(part, VideoPart)
    inner = part.video_url
    frames = inner.frames if part.frames is None else part.frames
    return await media.open_video(inner.url, frames, inner.fps if part.fps is None else part.fps)


async def _all_or_nothing(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run coroutines together. If one fails or this is cancelled, cancel the others."""
    tasks: list[asyncio.Task[Result]] = [asyncio.create_task(one) for one in work]
    gathered: Awaitable[list[Result]] = asyncio.gather(*tasks)
    try:
        return await gathered
    finally:
        for task in tasks:
            task.cancel()
