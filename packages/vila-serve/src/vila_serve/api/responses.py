"""POST /v1/responses: OpenAI's newer form of a conversation, without state on the server."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, VilaError, shown
from vila_serve.answering import RunningAnswer
from vila_serve.api.bodies import JsonRoute
from vila_serve.api.conversation import read_conversation
from vila_serve.api.documentation import ERRORS, STREAM
from vila_serve.api.errors import ApiError, as_api_error, failed_answer
from vila_serve.api.event_stream import CLIENT_LEFT, EventStream, event, unless_client_leaves
from vila_serve.api.generation import as_config, require_images, sampling_settings, without_pictures
from vila_serve.api.images import asked_drawing, check_options
from vila_serve.api.response_output import Event, ResponseOutput
from vila_serve.api.schemas.chat import AssistantMessage, ChatMessage, JsonObjectFormat, SystemMessage, UserMessage
from vila_serve.api.schemas.images import DRAWING_FIELDS, ImageGenerationTool, PictureOptions
from vila_serve.api.schemas.parts import ImagePart, ImageUrl, TextPart
from vila_serve.api.schemas.responses import (
    DrawingChoice,
    IncompleteDetails,
    InputMessage,
    InputPicture,
    InputTokensDetails,
    NamedSchemaFormat,
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
    tool = _drawing_tool(service, body)
    if body.background:
        message = "This server keeps no responses to fetch later. Leave 'background' out."
        raise ApiError(400, message, param="background", code="invalid_value")
    service.check_length(len(body.input))
    config = _config(service, body, tool)
    answer = await _begin(service, body, config, tool)
    growing = _GrowingResponse(service, body, config, answer, tool)
    if body.stream:
        return EventStream(growing.events())
    try:
        async for _ in growing.output_events():
            pass
    except GenerationError as error:
        raise failed_answer(error) from error
    finally:
        service.end_answers([answer])
    return JSONResponse(growing.response().model_dump())


async def _begin(
    service: Service, body: ResponseRequest, config: GenerationConfig, tool: ImageGenerationTool | None
) -> RunningAnswer:
    """Start to draw the picture that `tool_choice` asks for, or else to continue the conversation."""
    previews = 0 if tool is None else tool.partial_images or 0
    if tool is not None and _must_draw(body):
        (answer,) = await service.answering.draw(_description(body), asked_drawing(tool), 1, previews=previews)
        return answer
    instructions = _instructions(body)
    conversation = await read_conversation(
        [*instructions, *map(_as_chat_message, body.input)],
        service.media,
        service.model.template,
        service.settings.max_media,
        [*("instructions" for _ in instructions), *(f"input[{index}]" for index in range(len(body.input)))],
    )
    (answer,) = await service.answering.answer(conversation, [config], previews=previews)
    return answer


def _drawing_tool(service: Service, body: ResponseRequest) -> ImageGenerationTool | None:
    """Return the tool that lets the model draw, if the request has it. Raises `ApiError` for other tools."""
    for tool in body.tools or ():
        if not isinstance(tool, ImageGenerationTool):
            raise ApiError(
                400,
                f"The only tool in /v1/responses is 'image_generation', got {shown(tool.type)}. For functions use "
                "/v1/chat/completions.",
                param="tools",
                code="tools_not_supported",
            )
        require_images(service, "tools")
        if tool.model is not None:
            service.check_model(tool.model)
        check_options(service, tool, is_streamed=bool(body.stream), place="tools[0].")
        _check_drawing_fields(body, tool)
        if len(body.tools or ()) > 1:
            raise ApiError(400, "'tools' has the tool 'image_generation' more than once.", param="tools")
        return None if body.tool_choice == "none" else tool
    if _must_draw(body):
        message = "'tool_choice' asks for a picture, but 'tools' has no {\"type\": \"image_generation\"}."
        raise ApiError(400, message, param="tool_choice", code="invalid_value")
    return None


def _check_drawing_fields(body: ResponseRequest, tool: ImageGenerationTool) -> None:
    """Raise `ApiError` if a request says how to draw, but does not ask for a picture."""
    given = next((name for name in DRAWING_FIELDS if getattr(tool, name) is not None), None)
    if given is not None and not _must_draw(body):
        raise ApiError(
            400,
            f"'{given}' is for a picture that 'tool_choice' asks for. A model that draws in a conversation uses its "
            "own settings: leave the field out, or set 'tool_choice' to \"required\".",
            param=f"tools[0].{given}",
            code="invalid_value",
        )


def _must_draw(body: ResponseRequest) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, DrawingChoice)


def _description(body: ResponseRequest) -> str:
    """Return what to draw if the answer has to be a picture. Raises `ApiError` unless the request is one text."""
    message = body.input[0]
    texts = [part.text for part in message.content if isinstance(part, TextPart)] if message.type == "message" else []
    is_text = message.type == "message" and message.role == "user" and len(texts) == len(message.content)
    if len(body.input) > 1 or not is_text or body.instructions is not None:
        raise ApiError(
            400,
            "A picture that 'tool_choice' asks for is drawn from one text: send one user message without media, and no "
            "'instructions'. With 'auto', the model reads the whole conversation and draws where it begins a picture.",
            param="tool_choice",
            code="invalid_value",
        )
    return "\n".join(texts)


def _instructions(body: ResponseRequest) -> list[ChatMessage]:
    if body.instructions is None:
        return []
    return [SystemMessage(role="system", content=[TextPart(type="text", text=body.instructions)])]


def _as_chat_message(message: InputMessage | InputPicture) -> ChatMessage:
    """Return the message with the parts that its role may have. Raises `ApiError` for media of another role."""
    if isinstance(message, InputPicture):
        url = ImageUrl(url=f"data:image/{message.output_format};base64,{message.result}")
        return AssistantMessage(role="assistant", content=[ImagePart(type="image_url", image_url=url)])
    kind = {"user": UserMessage, "assistant": AssistantMessage}.get(message.role, SystemMessage)
    if kind is not UserMessage and any(part.type not in ("refusal", *_TEXTS) for part in message.content):
        raise ApiError(400, f"A message of the role '{message.role}' holds texts only.", param="input")
    return kind.model_construct(role=message.role, content=message.content)


_TEXTS = ("text", "input_text", "output_text")


def _config(service: Service, body: ResponseRequest, tool: ImageGenerationTool | None) -> GenerationConfig:
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
    if biases := without_pictures(service.model, but=None if tool is None else "image"):
        values["logit_bias"] = biases
    return as_config(values, "text.format")


class _GrowingResponse:
    """An answer, as a response object and as events."""

    def __init__(
        self,
        service: Service,
        body: ResponseRequest,
        config: GenerationConfig,
        answer: RunningAnswer,
        tool: ImageGenerationTool | None,
    ):
        self.service = service
        self.body = body
        self.answer = answer
        self._config = config
        self._output = ResponseOutput(service, tool or PictureOptions())
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created_at = int(time.time())
        self._count = 0

    def response(self) -> ResponseObject:
        """Return the response as it is now."""
        ending, body = self.answer.ending, self.body
        is_cut = ending is not None and ending.finish_reason == "length"
        usage = None
        if ending is not None:
            counts = ending.usage
            written = counts.completion_tokens + ending.picture_tokens
            usage = ResponseUsage(
                input_tokens=counts.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=counts.cached_tokens),
                output_tokens=written,
                total_tokens=counts.prompt_tokens + written,
            )
        return ResponseObject(
            id=self._id,
            created_at=self._created_at,
            completed_at=None if ending is None else int(time.time()),
            status="in_progress" if ending is None else "incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=body.model,
            output=[] if ending is None else self._output.items,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_logprobs=self._config.top_logprobs,
            text=self._text_options(),
            tool_choice=body.tool_choice or ("auto" if body.tools else "none"),
            tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            usage=usage,
            metadata=body.metadata or {},
        )

    def _text_options(self) -> dict[str, Any]:
        options = self.body.text
        if options is None or options.format is None:
            return {"format": {"type": "text"}}
        return {"format": options.format.model_dump(by_alias=True, exclude_none=True)}

    async def output_events(self) -> AsyncIterator[Event]:
        """Wait for the answer, and yield the events of its items."""
        async for delta in self.answer:
            async for event_of_item in self._output.push(delta):
                yield event_of_item
        ending = self.answer.ending
        for event_of_item in self._output.finish(is_cut=ending is not None and ending.finish_reason == "length"):
            yield event_of_item

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the answer in OpenAI's order."""
        try:
            yield self._event("response.created", response=self.response().model_dump())
            yield self._event("response.in_progress", response=self.response().model_dump())
            async for kind, fields in self.output_events():
                yield self._event(kind, **fields)
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
