"""POST /v1/responses: OpenAI's newer form of a conversation, without state on the server."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, VilaError
from vila_serve.answering import RunningAnswer
from vila_serve.api.bodies import JsonRoute
from vila_serve.api.conversation import read_conversation
from vila_serve.api.documentation import ERRORS, STREAM
from vila_serve.api.errors import ApiError, as_api_error, failed_answer
from vila_serve.api.event_stream import CLIENT_LEFT, EventStream, event, unless_client_leaves
from vila_serve.api.generation import as_config, sampling_settings, without_pictures
from vila_serve.api.schemas.chat import AssistantMessage, ChatMessage, JsonObjectFormat, SystemMessage, UserMessage
from vila_serve.api.schemas.parts import TextPart
from vila_serve.api.schemas.responses import (
    IncompleteDetails,
    InputMessage,
    InputTokensDetails,
    NamedSchemaFormat,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseRequest,
    ResponseUsage,
)
from vila_serve.api.service import Service

PATH = "/v1/responses"
LOGPROBS = "message.output_text.logprobs"


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(route_class=JsonRoute, tags=["responses"])

    @routes.post(PATH, responses={200: {"model": ResponseObject, "content": STREAM}, **ERRORS})
    async def create_response(request: Request, body: ResponseRequest) -> Response:
        """Continue a conversation of texts, images and videos."""
        response = await unless_client_leaves(request, _answer_or_explain(service, body))
        return Response(status_code=CLIENT_LEFT) if response is None else response

    return routes


_FIELDS = {"messages": "input", "max_tokens": "max_output_tokens"}
"""Fields of chat completions -> what they are called here."""


async def _answer_or_explain(service: Service, body: ResponseRequest) -> Response:
    """Answer a request. Errors name the fields as they are called here."""
    try:
        return await _answer(service, body)
    except (ApiError, VilaError) as error:
        explained = as_api_error(error)
        explained.param = _FIELDS.get(explained.param or "", explained.param)
        raise explained from None


async def _answer(service: Service, body: ResponseRequest) -> Response:
    service.check_model(body.model)
    if body.tools:
        raise ApiError(
            400,
            "This server has no tools in /v1/responses. Use /v1/chat/completions.",
            param="tools",
            code="tools_not_supported",
        )
    if body.background:
        message = "This server keeps no responses to fetch later. Leave 'background' out."
        raise ApiError(400, message, param="background", code="invalid_value")
    service.check_length(len(body.input))
    config = _config(service, body)
    instructions = _instructions(body)
    conversation = await read_conversation(
        [*instructions, *map(_as_chat_message, body.input)],
        service.media,
        service.model.template,
        service.settings.max_media,
        [*("instructions" for _ in instructions), *(f"input[{index}]" for index in range(len(body.input)))],
    )
    (answer,) = await service.answering.answer(conversation, [config])
    del conversation  # its pixels are no longer needed, and may be many
    growing = _GrowingResponse(service, body, config, answer)
    if body.stream:
        return EventStream(growing.events())
    try:
        async for delta in answer:
            growing.text += delta.text
            growing.logprobs += [service.token_texts.entry(one).model_dump() for one in delta.logprobs]
    except GenerationError as error:
        raise failed_answer(error) from error
    finally:
        service.end_answers([answer])
    return JSONResponse(growing.response().model_dump())


def _instructions(body: ResponseRequest) -> list[ChatMessage]:
    if body.instructions is None:
        return []
    return [SystemMessage(role="system", content=[TextPart(type="text", text=body.instructions)])]


def _as_chat_message(message: InputMessage) -> ChatMessage:
    """Return the message with the parts that its role may have. Raises `ApiError` for media of another role."""
    kind = {"user": UserMessage, "assistant": AssistantMessage}.get(message.role, SystemMessage)
    if kind is not UserMessage and any(part.type not in ("refusal", *_TEXTS) for part in message.content):
        raise ApiError(400, f"A message of the role '{message.role}' holds texts only.", param="input")
    return kind.model_construct(role=message.role, content=message.content)


_TEXTS = ("text", "input_text", "output_text")


def _config(service: Service, body: ResponseRequest) -> GenerationConfig:
    chosen = body.text.format if body.text is not None else None
    json_settings: dict[str, Any] = {}
    if isinstance(chosen, JsonObjectFormat):
        json_settings = {"json_mode": True}
    elif isinstance(chosen, NamedSchemaFormat):
        json_settings = {"json_schema": chosen.schema_}
    sampling = sampling_settings(
        service.settings, max_tokens=body.max_output_tokens, temperature=body.temperature, top_p=body.top_p
    )
    has_logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    values = {**sampling, "logprobs": has_logprobs, "top_logprobs": body.top_logprobs or 0, **json_settings}
    if biases := without_pictures(service.model):
        values["logit_bias"] = biases  # answers hold texts only
    return as_config(values, "text.format")


@dataclass
class _GrowingResponse:
    """An answer, as a response object and as events."""

    service: Service
    body: ResponseRequest
    config: GenerationConfig
    answer: RunningAnswer
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    item_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    _count: int = 0

    def response(self) -> ResponseObject:
        """Return the response as it is now."""
        ending, body = self.answer.ending, self.body
        is_cut = ending is not None and ending.finish_reason == "length"
        usage = None
        if ending is not None:
            counts = ending.usage
            usage = ResponseUsage(
                input_tokens=counts.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=counts.cached_tokens),
                output_tokens=counts.completion_tokens,
                total_tokens=counts.prompt_tokens + counts.completion_tokens,
            )
        return ResponseObject(
            id=self.id,
            created_at=self.created_at,
            completed_at=None if ending is None else int(time.time()),
            status="in_progress" if ending is None else "incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=body.model,
            output=[] if ending is None else [self._item()],
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_logprobs=self.config.top_logprobs,
            text=self._text_options(),
            usage=usage,
            metadata=body.metadata or {},
        )

    def _text_options(self) -> dict[str, Any]:
        options = self.body.text
        if options is None or options.format is None:
            return {"format": {"type": "text"}}
        return {"format": options.format.model_dump(by_alias=True, exclude_none=True)}

    def _item(self) -> OutputMessage:
        ending = self.answer.ending
        if ending is None:
            return OutputMessage(id=self.item_id, status="in_progress", content=[])
        status = "incomplete" if ending.finish_reason == "length" else "completed"
        return OutputMessage(id=self.item_id, status=status, content=[self._part()])

    def _part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=self.logprobs)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the answer in OpenAI's order."""
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        try:
            yield self._event("response.created", response=self.response().model_dump())
            yield self._event("response.in_progress", response=self.response().model_dump())
            yield self._event("response.output_item.added", output_index=0, item=self._item().model_dump())
            yield self._event("response.content_part.added", **place, part=OutputText(text="").model_dump())
            async for delta in self.answer:
                logprobs = [self.service.token_texts.entry(one).model_dump() for one in delta.logprobs]
                self.text += delta.text
                self.logprobs += logprobs
                yield self._event("response.output_text.delta", **place, delta=delta.text, logprobs=logprobs)
            yield self._event("response.output_text.done", **place, text=self.text, logprobs=self.logprobs)
            yield self._event("response.content_part.done", **place, part=self._part().model_dump())
            yield self._event("response.output_item.done", output_index=0, item=self._item().model_dump())
            ended = self.response()
            yield self._event(f"response.{ended.status}", response=ended.model_dump())
        except Exception as error:  # noqa: BLE001 - the status has been sent, so that only an event can say it
            failed = failed_answer(error)
            yield self._event("error", code="server_error", message=failed.message, param=None)
        finally:
            self.service.end_answers([self.answer])

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._count += 1
        return event({"type": kind, "sequence_number": self._count - 1, **fields}, kind)
