"""POST /v1/chat/completions, and /chat/completions for clients of VILA's own server."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.completion import Usage as TokenCounts
from vila_core.engine.limits import QueueFullError
from vila_core.errors import GenerationError
from vila_serve.answering import Delta, Ending, Picture, RunningAnswer, merged, picture_tokens
from vila_serve.api.bodies import JsonRoute
from vila_serve.api.conversation import read_conversation
from vila_serve.api.documentation import ERRORS, STREAM
from vila_serve.api.errors import ApiError, failed_answer, wrong_setting
from vila_serve.api.event_stream import CLIENT_LEFT, DONE, EventStream, event, unless_client_leaves
from vila_serve.api.generation import as_config, generation_configs
from vila_serve.api.schemas.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    CompletionTokensDetails,
    FinishReason,
    PromptTokensDetails,
    ToolCall,
    Usage,
)
from vila_serve.api.schemas.parts import AnswerImage, ImageUrl
from vila_serve.api.service import FINGERPRINT, Service
from vila_serve.api.tools import ToolCallReader, ToolUse, tool_use
from vila_serve.picture_files import as_data_uri

PATHS = ("/v1/chat/completions", "/chat/completions")


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(route_class=JsonRoute, tags=["chat"])

    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        """Continue a conversation of texts, images and videos."""
        response = await unless_client_leaves(request, answer_chat(service, body))
        return Response(status_code=CLIENT_LEFT) if response is None else response

    for path in PATHS:
        routes.add_api_route(
            path,
            create_chat_completion,
            methods=["POST"],
            response_class=JSONResponse,
            responses={200: {"model": ChatCompletion, "content": STREAM}, **ERRORS},
            operation_id="create_chat_completion" + ("" if path.startswith("/v1") else "_without_version"),
        )
    return routes


async def answer_chat(service: Service, body: ChatCompletionRequest) -> Response:
    """Answer a request. Raises `ApiError`, or a `VilaError` about the request."""
    service.check_model(body.model)
    service.check_length(len(body.messages))
    configs = generation_configs(body, service)
    use = tool_use(body, service.model.template)
    if use.schema is not None:
        configs = [as_config({**dict(config), "json_schema": use.schema}, "tools") for config in configs]
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "'stream_options' needs 'stream': true.", param="stream_options")
    conversation = await read_conversation(
        body.messages, service.media, service.model.template, service.settings.max_media
    )
    try:
        answers = await service.answering.answer(conversation, configs, use.declarations)
    except GenerationError as error:
        if use.schema is None or isinstance(error, QueueFullError):
            raise
        raise wrong_setting(error, "tools") from None
    del conversation  # its pixels are no longer needed, and may be many
    if body.stream:
        return EventStream(_ChatStream(service, body, answers, use).events())
    try:
        choices = await asyncio.gather(*(_choice(service, index, answer, use) for index, answer in enumerate(answers)))
    except GenerationError as error:
        raise failed_answer(error) from error
    finally:
        service.end_answers(answers)
    completion = ChatCompletion(
        id=_new_id(),
        created=int(time.time()),
        model=body.model,
        choices=choices,
        usage=usage_of(answers),
        system_fingerprint=FINGERPRINT,
    )
    without = {index: {"message": _absent(choice.message)} for index, choice in enumerate(choices)}
    return JSONResponse(completion.model_dump(exclude={"choices": without}))


def _absent(message: AnswerMessage) -> set[str]:
    """Return the fields that only some answers have, as far as this one lacks them."""
    return {name for name in ("tool_calls", "images") if getattr(message, name) is None}


async def _choice(service: Service, index: int, answer: RunningAnswer, use: ToolUse) -> Choice:
    """Wait for an answer."""
    reader = ToolCallReader(use)
    parts, logprobs, images = list[tuple[str, list[ToolCall]]](), list[TokenLogprobs](), list[AnswerImage]()
    async for delta in answer:
        parts.append(reader.push(delta.text))
        logprobs += delta.logprobs
        if delta.picture is not None:
            images.append(await _image(delta.picture, len(images)))
    parts.append(reader.finish())
    text, calls = "".join(text for text, _ in parts), [call for _, calls in parts for call in calls]
    assert answer.ending is not None
    return Choice(
        index=index,
        message=AnswerMessage(content=text or None if calls else text, tool_calls=calls or None, images=images or None),
        logprobs=_logprobs(service, logprobs) if logprobs else None,
        finish_reason=_finish_reason(answer.ending, reader),
    )


async def _image(picture: Picture, index: int) -> AnswerImage:
    url = await as_data_uri(picture)
    return AnswerImage(type="image_url", image_url=ImageUrl(url=url), index=index)


def _finish_reason(ending: Ending, reader: ToolCallReader) -> FinishReason:
    return "tool_calls" if reader.num_calls and ending.finish_reason == "stop" else ending.finish_reason


def _logprobs(service: Service, logprobs: Sequence[TokenLogprobs]) -> ChoiceLogprobs:
    return ChoiceLogprobs(content=[service.token_texts.entry(one) for one in logprobs])


def usage_of(answers: Sequence[RunningAnswer]) -> Usage:
    """Return the token counts of answers to one prompt."""
    counts: list[TokenCounts] = [answer.ending.usage for answer in answers if answer.ending is not None]
    prompt = answers[0].prompt
    written = sum(one.completion_tokens for one in counts)
    drawn = picture_tokens(answers)
    return Usage(
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=written + drawn,
        total_tokens=prompt.prompt_tokens + written + drawn,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=counts[0].cached_tokens if counts else 0,
            text_tokens=prompt.prompt_tokens - prompt.media_tokens,
            image_tokens=prompt.media_tokens,
        ),
        completion_tokens_details=CompletionTokensDetails(text_tokens=written, image_tokens=drawn),
    )


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


class _ChatStream:
    """The events of a streamed answer: the role, pieces of text, pictures, the reason for the end, token counts."""

    def __init__(self, service: Service, body: ChatCompletionRequest, answers: Sequence[RunningAnswer], use: ToolUse):
        self._service = service
        self._answers = answers
        self._readers = [ToolCallReader(use) for _ in answers]
        self._num_images = [0] * len(answers)
        self._has_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._head: dict[str, Any] = {
            "id": _new_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": FINGERPRINT,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events. An answer that fails ends the stream with an error event."""
        try:
            for index in range(len(self._answers)):
                yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
            async for index, news in merged(self._answers):
                if part := b"".join(self._of_news(index, news)):
                    yield part
                if isinstance(news, Delta) and news.picture is not None:
                    yield await self._of_picture(index, news.picture)
            if self._has_usage:
                yield event({**self._head, "choices": [], "usage": usage_of(self._answers).model_dump()})
        except Exception as error:  # noqa: BLE001 - the status has been sent, so that only an event can say it
            yield event(failed_answer(error).body)
        finally:
            self._service.end_answers(self._answers)
        yield DONE

    def _of_news(self, index: int, news: Delta | Ending) -> Iterator[bytes]:
        reader = self._readers[index]
        before = reader.num_calls
        text, calls = reader.finish() if isinstance(news, Ending) else reader.push(news.text)
        chosen = [] if isinstance(news, Ending) else news.logprobs
        logprobs = _logprobs(self._service, chosen).model_dump() if chosen else None
        if text or logprobs:
            yield self._chunk(index, {"content": text}, logprobs=logprobs)
        for number, call in enumerate(calls, before):
            yield self._chunk(index, {"tool_calls": [{"index": number, **call.model_dump()}]})
        if isinstance(news, Ending):
            yield self._chunk(index, {}, _finish_reason(news, reader))

    async def _of_picture(self, index: int, picture: Picture) -> bytes:
        image = await _image(picture, self._num_images[index])
        self._num_images[index] += 1
        return self._chunk(index, {"images": [image.model_dump()]})

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event({**self._head, "choices": [choice], **({"usage": None} if self._has_usage else {})})
