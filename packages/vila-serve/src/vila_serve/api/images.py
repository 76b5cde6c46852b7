"""POST /v1/images/generations: pictures of a prompt, for models that draw."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.errors import GenerationError, VilaError, shown
from vila_serve.answer_settings import drawing_config
from vila_serve.answering import Ending, Picture, RunningAnswer, merged, picture_tokens
from vila_serve.api.bodies import JsonRoute
from vila_serve.api.documentation import ERRORS, STREAM
from vila_serve.api.errors import ApiError, as_api_error, failed_answer
from vila_serve.api.event_stream import CLIENT_LEFT, EventStream, event, unless_client_leaves
from vila_serve.api.generation import SMALLEST_TOP_P, require_images
from vila_serve.api.schemas.images import (
    DRAWING_FIELDS,
    DrawingOptions,
    DrawnImage,
    ImageGenerationRequest,
    ImagesResponse,
    ImagesUsage,
    OutputFormat,
    PictureOptions,
    TokensByKind,
)
from vila_serve.api.service import Service
from vila_serve.picture_files import BEST, as_base64

PATH = "/v1/images/generations"


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(route_class=JsonRoute, tags=["images"])

    @routes.post(PATH, responses={200: {"model": ImagesResponse, "content": STREAM}, **ERRORS})
    async def create_image(request: Request, body: ImageGenerationRequest) -> Response:
        """Draw pictures of a prompt. Models without a generation head answer with status 400."""
        response = await unless_client_leaves(request, _draw_or_explain(service, body))
        return Response(status_code=CLIENT_LEFT) if response is None else response

    return routes


async def _draw_or_explain(service: Service, body: ImageGenerationRequest) -> Response:
    """Answer a request. Errors that name the messages of a chat name the prompt here."""
    try:
        return await _draw(service, body)
    except (ApiError, VilaError) as error:
        explained = as_api_error(error)
        explained.param = "prompt" if explained.param == "messages" else explained.param
        raise explained from None


async def _draw(service: Service, body: ImageGenerationRequest) -> Response:
    _check(service, body)
    previews = body.partial_images or 0
    answers = await service.answering.draw(body.prompt, asked_drawing(body), body.n or 1, previews=previews)
    drawing = _Drawing(service, body, answers)
    if body.stream:
        return EventStream(drawing.events())
    return JSONResponse((await drawing.response()).model_dump())


def _check(service: Service, body: ImageGenerationRequest) -> None:
    """Raise `ApiError` for a request that this server or this model cannot fulfill."""
    if body.model is not None:
        service.check_model(body.model)
    require_images(service, "model")
    most = min(service.settings.max_pictures, service.settings.places)
    if (body.n or 1) > most:
        raise ApiError(400, f"'n' is {body.n}; this server draws at most {most} pictures at a time.", param="n")
    if body.response_format == "url":
        raise ApiError(
            400,
            "This server keeps no files, so that pictures have no address. Leave 'response_format' out, or set it to "
            "'b64_json'.",
            param="response_format",
            code="invalid_value",
        )
    if body.style is not None:
        message = "This model has no styles to choose from. Describe the style in the prompt."
        raise ApiError(400, message, param="style", code="unknown_parameter")
    check_options(service, body, is_streamed=bool(body.stream))


def asked_drawing(options: DrawingOptions) -> DrawingConfig:
    """Return how to draw. Raises `GenerationError` as `drawing_config` does."""
    asked = options.model_dump(include={*DRAWING_FIELDS} - {"seed"})
    if options.top_p is not None:
        asked["top_p"] = max(options.top_p, SMALLEST_TOP_P)
    return drawing_config(asked, options.seed)


def check_options(service: Service, options: PictureOptions, *, is_streamed: bool, place: str = "") -> None:
    """Raise `ApiError` for a form that pictures of this model cannot have. `place` is before the field's name."""
    own = size_of(service)
    if options.size not in (None, "auto", own):
        raise ApiError(
            400,
            f"'size' is {shown(options.size)}, but this model draws pictures of {own} pixels only. Leave the field "
            "out, or set it to 'auto'.",
            param=f"{place}size",
            code="invalid_value",
        )
    if options.background == "transparent":
        message = "This model draws opaque pictures only. Set 'background' to 'opaque' or 'auto'."
        raise ApiError(400, message, param=f"{place}background", code="invalid_value")
    if options.output_compression not in (None, BEST) and (options.output_format or "png") == "png":
        message = "'output_compression' is for the output formats jpeg and webp; PNG loses nothing."
        raise ApiError(400, message, param=f"{place}output_compression", code="invalid_value")
    if options.partial_images and not is_streamed:
        raise ApiError(400, "'partial_images' needs 'stream': true.", param=f"{place}partial_images")


def size_of(service: Service) -> str:
    """Return the size of the model's images, such as 256x256."""
    width, height = service.model.pictures["image"].size
    return f"{width}x{height}"


class _Drawing:
    """Pictures that are being drawn for a request, as one response or as events."""

    def __init__(self, service: Service, body: ImageGenerationRequest, answers: Sequence[RunningAnswer]):
        self._service = service
        self._answers = answers
        self._format: OutputFormat = body.output_format or "png"
        self._quality = BEST if body.output_compression is None else body.output_compression
        self._created = int(time.time())

    async def response(self) -> ImagesResponse:
        """Wait for all pictures. Raises `ApiError` if one fails."""
        try:
            images = await asyncio.gather(*map(self._image, self._answers))
        except GenerationError as error:
            raise failed_answer(error) from error
        finally:
            self._service.end_answers(self._answers)
        return ImagesResponse(
            created=self._created,
            data=images,
            output_format=self._format,
            size=size_of(self._service),
            usage=_usage(self._answers),
        )

    async def _image(self, answer: RunningAnswer) -> DrawnImage:
        pictures = [delta.picture async for delta in answer]
        assert pictures[-1] is not None, "the answer is a picture"
        return DrawnImage(b64_json=await self._encoded(pictures[-1]))

    async def _encoded(self, picture: Picture) -> str:
        return await as_base64(picture, self._format, self._quality)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the previews and the pictures as they come. A picture that fails ends the stream with an error."""
        counts = [0] * len(self._answers)
        finished: list[Picture | None] = [None] * len(self._answers)
        try:
            async for index, news in merged(self._answers):
                if isinstance(news, Ending):
                    picture = finished[index]
                    assert picture is not None, "the answer is a picture"
                    usage = _usage([self._answers[index]]).model_dump(exclude={"output_tokens_details"})
                    yield await self._event("completed", index, picture, usage=usage)
                elif news.picture is not None and news.picture.is_preview:
                    yield await self._event("partial_image", index, news.picture, partial_image_index=counts[index])
                    counts[index] += 1
                elif news.picture is not None:
                    finished[index] = news.picture
        except Exception as error:  # noqa: BLE001 - the status has been sent, so that only an event can say it
            yield event(failed_answer(error).body, "error")
        finally:
            self._service.end_answers(self._answers)

    async def _event(self, kind: str, index: int, picture: Picture, **fields: Any) -> bytes:
        """Return an event as OpenAI's API has it, with `image_index`, which tells several pictures apart."""
        name = f"image_generation.{kind}"
        data = {
            "type": name,
            "b64_json": await self._encoded(picture),
            "background": "opaque",
            "created_at": self._created,
            "output_format": self._format,
            "quality": "auto",
            "size": size_of(self._service),
            "image_index": index,
            **fields,
        }
        return event(data, name)


def _usage(answers: Sequence[RunningAnswer]) -> ImagesUsage:
    """Return the token counts of pictures of one prompt."""
    read = answers[0].prompt.prompt_tokens
    drawn = picture_tokens(answers)
    return ImagesUsage(
        input_tokens=read,
        input_tokens_details=TokensByKind(text_tokens=read, image_tokens=0),
        output_tokens=drawn,
        output_tokens_details=TokensByKind(text_tokens=0, image_tokens=drawn),
        total_tokens=read + drawn,
    )
