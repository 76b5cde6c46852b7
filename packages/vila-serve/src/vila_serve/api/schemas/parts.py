"""Parts of a message: text, images and videos."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from vila_serve.api.schemas.base import AnySchema, Detail, Schema, text_or_list, without_nulls

MAX_FRAMES = 4096
Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
FramesPerSecond = Annotated[float, Field(gt=0, le=1000)]
Address = Annotated[str, Field(min_length=1)]


class TextPart(AnySchema):
    """Text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(AnySchema):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Schema):
    """An image: a `data:` URI, or an https address if the server allows its host. `detail` low sends one tile."""

    url: Address
    detail: Detail = "auto"


class ImagePart(AnySchema):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(without_nulls)]


class AnswerImage(ImagePart):
    """A picture of an answer, in an answer and in the history: a `data:` URI, and its place among the pictures."""

    index: int | None = None


class VideoUrl(Schema):
    """A video: a `data:` URI, or an https address if the server allows its host."""

    url: Address
    frames: Frames | None = None
    fps: FramesPerSecond | None = None


class VideoPart(AnySchema):
    """A video. `frames` are sampled from it, or `fps` of them a second and at most `frames`; default: the model's own.

    VILA's own server has this type of part; OpenAI's API has none.
    """

    type: Literal["video_url"]
    video_url: Annotated[VideoUrl, BeforeValidator(without_nulls)]
    frames: Frames | None = None
    fps: FramesPerSecond | None = None


class InputImagePart(AnySchema):
    """An image in a request to /v1/responses."""

    type: Literal["input_image"]
    image_url: Address | None = None
    file_id: str | None = None
    detail: Detail | None = None


class InputVideoPart(AnySchema):
    """A video in a request to /v1/responses, where OpenAI's API has none."""

    type: Literal["input_video"]
    video_url: Address
    frames: Frames | None = None
    fps: FramesPerSecond | None = None


UserPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]
InputPart = Annotated[
    TextPart | RefusalPart | InputImagePart | InputVideoPart | ImagePart | VideoPart, Field(discriminator="type")
]
AnyPart = TextPart | RefusalPart | ImagePart | VideoPart | InputImagePart | InputVideoPart


def as_parts(value: object) -> object:
    """Return a message's text as a list of parts."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else text_or_list(value, "parts")


UserContent = Annotated[
    list[UserPart], Field(fail_fast=True), BeforeValidator(as_parts, json_schema_input_type=str | list[UserPart])
]
TextContent = Annotated[
    list[TextPart], Field(fail_fast=True), BeforeValidator(as_parts, json_schema_input_type=str | list[TextPart])
]
AssistantContent = Annotated[
    list[AssistantPart],
    Field(fail_fast=True),
    BeforeValidator(as_parts, json_schema_input_type=str | list[AssistantPart]),
]
InputContent = Annotated[
    list[InputPart], Field(fail_fast=True), BeforeValidator(as_parts, json_schema_input_type=str | list[InputPart])
]
