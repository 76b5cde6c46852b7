"""Requests to /v1/responses, and its responses."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from vila_serve.api.schemas.base import (
    MAX_TOP_LOGPROBS,
    AnySchema,
    Metadata,
    RequestSchema,
    Schema,
    text_or_list,
    without_nulls,
)
from vila_serve.api.schemas.chat import JsonObjectFormat, TextFormat
from vila_serve.api.schemas.images import ImageGenerationCall, ImageGenerationTool, OutputFormat
from vila_serve.api.schemas.parts import InputContent


class InputMessage(AnySchema):
    """A message of the conversation; earlier answers can be sent as they came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent


class InputPicture(AnySchema):
    """A picture of an earlier answer, as it came."""

    type: Literal["image_generation_call"]
    result: str = Field(min_length=1)
    output_format: OutputFormat = "png"


def _either(name: str, other: str) -> Discriminator:
    """Tell objects of the type `name` from all others."""

    def tag(value: object) -> str:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return name if kind == name else other

    return Discriminator(tag)


InputItem = Annotated[
    Annotated[InputPicture, Tag("image_generation_call")] | Annotated[InputMessage, Tag("message")],
    _either("image_generation_call", "message"),
]


class OtherTool(AnySchema):
    """A tool that this server does not have."""

    type: str


ResponseTool = Annotated[
    Annotated[ImageGenerationTool, Tag("image_generation")] | Annotated[OtherTool, Tag("tool")],
    _either("image_generation", "tool"),
]


class DrawingChoice(Schema):
    """The answer is a picture."""

    type: Literal["image_generation"]


def as_input(value: object) -> object:
    """Return a text as a list with one message."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else text_or_list(value, "messages")


class NamedSchemaFormat(AnySchema):
    """The answer is JSON that follows a schema."""

    type: Literal["json_schema"]
    name: str | None = Field(default=None, max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


TextFormats = Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")]


class TextOptions(Schema):
    """The form of the answer."""

    format: Annotated[TextFormats, BeforeValidator(without_nulls)] | None = None
    verbosity: str | None = None


class ResponseStreamOptions(Schema):
    """Options of a streamed response; without effect here."""

    include_obfuscation: bool | None = None


class ResponseRequest(RequestSchema):
    """A conversation to continue. Nothing is stored: send the whole conversation each time.

    `seed`, `stop` and the penalties are not part of OpenAI's API here. The fields after `metadata` have no effect.
    """

    model: str
    input: Annotated[
        list[InputItem],
        Field(min_length=1, fail_fast=True),
        BeforeValidator(as_input, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    include: list[str] | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    background: bool | None = None
    tools: list[ResponseTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | DrawingChoice | None = None
    metadata: Metadata | None = None

    store: bool | None = None
    user: str | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None


class OutputText(Schema):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    logprobs: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])


class OutputMessage(Schema):
    """An answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class IncompleteDetails(Schema):
    """Why an answer is incomplete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(Schema):
    """How many tokens of the prompt were found in the cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Schema):
    """Of the answer's tokens, those of a kind that this server does not produce."""

    reasoning_tokens: int = 0


class ResponseUsage(Schema):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class ResponseObject(Schema):
    """An answer with what was asked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputMessage | ImageGenerationCall]
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none", "auto", "required"] | DrawingChoice
    tools: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    top_p: float
    top_logprobs: int = 0
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: Metadata = Field(default_factory=dict[str, Any])
