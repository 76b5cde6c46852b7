"""Requests to /v1/chat/completions, and its responses."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vila_serve.api.schemas.base import (
    MAX_BIASES,
    MAX_TOP_LOGPROBS,
    AnySchema,
    Metadata,
    RequestSchema,
    Schema,
    Stops,
    without_nulls,
)
from vila_serve.api.schemas.parts import AnswerImage, AssistantContent, TextContent, UserContent


class FunctionCall(Schema):
    """A call of a function; `arguments` is a JSON text."""

    name: str
    arguments: str


class ToolCall(AnySchema):
    """A call of a tool that the assistant asked for."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(AnySchema):
    """Instructions for the whole conversation."""

    role: Literal["system", "developer"]
    content: TextContent


class UserMessage(AnySchema):
    """A question: text, images and videos in order."""

    role: Literal["user"]
    content: UserContent


class AssistantMessage(AnySchema):
    """An earlier answer. Pictures that it drew are in `images`, or among the parts of its content."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    images: Annotated[list[AnswerImage], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None


class ToolMessage(AnySchema):
    """What a tool returned."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: str


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Schema):
    """A function that the model may call. `parameters` is the JSON schema of its arguments."""

    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Schema):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Schema):
    """The name of a function."""

    name: str


class NamedTool(Schema):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(AnySchema):
    """The answer is any text."""

    type: Literal["text"]


class JsonObjectFormat(AnySchema):
    """The answer is a JSON object or array."""

    type: Literal["json_object"]


class JsonSchema(Schema):
    """A JSON schema that the answer follows."""

    name: str | None = Field(default=None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(AnySchema):
    """The answer is JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Schema):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatCompletionRequest(RequestSchema):
    """A conversation to continue.

    `top_k`, `repetition_penalty`, `stop_token_ids`, `use_cache` and `num_beams` are not part of OpenAI's API; the last
    two are read by VILA's own server. The fields after them have no effect here.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: Stops | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=MAX_BIASES)
    response_format: Annotated[ResponseFormat, BeforeValidator(without_nulls)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text", "image"]] | None = None

    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(default=None, max_length=1000)
    use_cache: bool | None = None
    num_beams: Literal[1] | None = None

    user: str | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    verbosity: str | None = None


class TopLogprob(Schema):
    """A token that the model found likely, with its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, with the tokens that were likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Schema):
    """The tokens of an answer."""

    content: list[TokenLogprob] | None
    refusal: None = None


class PromptTokensDetails(Schema):
    """Tokens of the prompt by kind: found in the cache, text, images and videos."""

    cached_tokens: int
    text_tokens: int
    image_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Schema):
    """Tokens of the answer by kind. A picture has as many as it has positions; `max_tokens` does not count them."""

    text_tokens: int
    image_tokens: int
    reasoning_tokens: int = 0
    audio_tokens: int = 0


class Usage(Schema):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnswerMessage(Schema):
    """An answer. `images`, the pictures that the model drew in it, are as OpenRouter and LiteLLM have them."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None
    images: list[AnswerImage] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class Choice(Schema):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Schema):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None
