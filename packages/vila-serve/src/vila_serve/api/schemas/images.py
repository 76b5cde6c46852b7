"""Requests to /v1/images/generations, and its responses."""

from typing import Literal

from pydantic import Field

from vila_serve.api.schemas.base import RequestSchema, Schema

MAX_PICTURES = 10
"""Most pictures that one request may ask for, in OpenAI's API."""
MAX_PROMPT = 32_000
"""Most characters of a prompt, in OpenAI's API."""
OutputFormat = Literal["png", "jpeg", "webp"]


class PictureOptions(RequestSchema):
    """The form of a picture.

    `quality` and `moderation` have no effect here: the model has one quality, and nothing is filtered.
    """

    size: str | None = Field(default=None, max_length=100)
    output_format: OutputFormat | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    background: Literal["auto", "opaque", "transparent"] | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    moderation: Literal["auto", "low"] | None = None


class DrawingOptions(PictureOptions):
    """The form of a picture, and how to draw it. The fields of this class itself are not part of OpenAI's API."""

    guidance: float | None = Field(default=None, ge=0, le=100)
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    top_p: float | None = Field(default=None, ge=0, le=1)


DRAWING_FIELDS = tuple(DrawingOptions.__annotations__)
"""Fields that say how to draw a picture, not which form it has."""


class ImageGenerationRequest(DrawingOptions):
    """A picture to draw. `user` and `safety_identifier` have no effect."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_PICTURES)
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None

    style: Literal["vivid", "natural"] | None = None
    user: str | None = None
    safety_identifier: str | None = None


class ImageGenerationTool(DrawingOptions):
    """Lets the model draw in a response. How to draw is for a picture that `tool_choice` asks for."""

    type: Literal["image_generation"]
    model: str | None = None
    action: Literal["auto", "generate"] | None = None


class ImageGenerationCall(Schema):
    """A picture in a response: the base64 of a file, null until it is drawn."""

    id: str
    type: Literal["image_generation_call"] = "image_generation_call"
    status: Literal["in_progress", "completed"] = "in_progress"
    result: str | None = None
    action: Literal["generate"] = "generate"
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str


class DrawnImage(Schema):
    """A picture: the base64 of a file."""

    b64_json: str


class TokensByKind(Schema):
    """Tokens of text, and positions of pictures."""

    text_tokens: int
    image_tokens: int


class ImagesUsage(Schema):
    """Token counts. A picture has as many tokens as it has positions."""

    input_tokens: int
    input_tokens_details: TokensByKind
    output_tokens: int
    output_tokens_details: TokensByKind
    total_tokens: int


class ImagesResponse(Schema):
    """The pictures of a prompt."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[DrawnImage]
    output_format: OutputFormat
    size: str
    usage: ImagesUsage
