"""The output items of a response as they grow: messages and pictures, in order."""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from vila_serve.answering import Delta, Picture
from vila_serve.api.images import size_of
from vila_serve.api.schemas.images import ImageGenerationCall, OutputFormat, PictureOptions
from vila_serve.api.schemas.responses import OutputMessage, OutputText
from vila_serve.api.service import Service
from vila_serve.picture_files import BEST, as_base64

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields."""


class ResponseOutput:
    """Makes items of what an answer gains, and the events that report them in OpenAI's order.

    Args:
        service: spells tokens, and knows the size of pictures.
        options: the form of pictures.

    Attributes:
        items: so far. The last one may still grow.
    """

    def __init__(self, service: Service, options: PictureOptions):
        self.items: list[OutputMessage | ImageGenerationCall] = []
        self._service = service
        self._format: OutputFormat = options.output_format or "png"
        self._quality = BEST if options.output_compression is None else options.output_compression
        self._num_previews = 0

    async def push(self, delta: Delta) -> AsyncIterator[Event]:
        """Take in what the answer has gained, and yield its events."""
        if delta.text or delta.logprobs:
            for event in self._push_text(delta):
                yield event
        if delta.picture is not None:
            async for event in self._push_picture(delta.picture):
                yield event

    def finish(self, *, is_cut: bool = False) -> Iterator[Event]:
        """End the last item. An answer without any has an empty message."""
        if not self.items:
            yield from self._begin_message()
        yield from self._end_message(is_cut=is_cut)

    def _push_text(self, delta: Delta) -> Iterator[Event]:
        if self._message is None:
            yield from self._begin_message()
        message = self._message
        assert message is not None, "it has begun"
        (part,) = message.content
        logprobs = [self._service.token_texts.entry(one).model_dump() for one in delta.logprobs]
        part.text += delta.text
        part.logprobs += logprobs
        yield "response.output_text.delta", {**self._place(), "delta": delta.text, "logprobs": logprobs}

    async def _push_picture(self, picture: Picture) -> AsyncIterator[Event]:
        for event in self._end_message():
            yield event
        last = self.items[-1] if self.items else None
        if not isinstance(last, ImageGenerationCall) or last.status == "completed":
            last = ImageGenerationCall(id=_new_id("ig"), output_format=self._format, size=size_of(self._service))
            self._num_previews = 0
            yield self._append(last)
            yield "response.image_generation_call.in_progress", self._at()
            yield "response.image_generation_call.generating", self._at()
        encoded = await as_base64(picture, self._format, self._quality)
        if picture.is_preview:
            form = last.model_dump(include={"background", "output_format", "quality", "size"})
            preview = {"partial_image_index": self._num_previews, "partial_image_b64": encoded}
            self._num_previews += 1
            yield "response.image_generation_call.partial_image", {**self._at(), **preview, **form}
            return
        last.result, last.status = encoded, "completed"
        yield "response.image_generation_call.completed", self._at()
        yield self._done(last)

    @property
    def _message(self) -> OutputMessage | None:
        """The message that grows."""
        last = self.items[-1] if self.items else None
        return last if isinstance(last, OutputMessage) and last.status == "in_progress" else None

    def _begin_message(self) -> Iterator[Event]:
        message = OutputMessage(id=_new_id("msg"), status="in_progress", content=[])
        yield self._append(message)
        message.content = [OutputText(text="")]
        yield "response.content_part.added", {**self._place(), "part": message.content[0].model_dump()}

    def _end_message(self, *, is_cut: bool = False) -> Iterator[Event]:
        """End the message that grows, if there is one."""
        message = self._message
        if message is None:
            return
        (part,) = message.content
        message.status = "incomplete" if is_cut else "completed"
        yield "response.output_text.done", {**self._place(), "text": part.text, "logprobs": part.logprobs}
        yield "response.content_part.done", {**self._place(), "part": part.model_dump()}
        yield self._done(message)

    def _append(self, item: OutputMessage | ImageGenerationCall) -> Event:
        self.items.append(item)
        return "response.output_item.added", {"output_index": len(self.items) - 1, "item": item.model_dump()}

    def _done(self, item: OutputMessage | ImageGenerationCall) -> Event:
        return "response.output_item.done", {"output_index": len(self.items) - 1, "item": item.model_dump()}

    def _at(self) -> dict[str, Any]:
        """Return where the last item is."""
        return {"item_id": self.items[-1].id, "output_index": len(self.items) - 1}

    def _place(self) -> dict[str, Any]:
        """Return where the text of the last item is."""
        return {**self._at(), "content_index": 0}


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
