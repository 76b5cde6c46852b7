"""The base of all schemas, and parts that several share."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_STOPS = 64
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1000


class Schema(BaseModel):
    """Base class: unknown fields are errors, and values are not converted (a number is not the text of one)."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class RequestSchema(Schema):
    """Base class of requests. A field of OpenAI's API that is not known here may be null, as some clients send it."""

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cast("dict[object, object]", values)
        return {name: value for name, value in fields.items() if value is not None or name in cls.model_fields}


class AnySchema(BaseModel):
    """Base class for objects of OpenAI's API of which only some fields matter here."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class ErrorDetail(Schema):
    """What went wrong: `param` is the field, `code` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Schema):
    """The body of every response with a status of 400 or more."""

    error: ErrorDetail


def text_or_list(value: object, entries: str) -> object:
    """Return the value of a field that takes a text or a list of `entries`. Raises `ValueError` for any other."""
    if isinstance(value, str | list):
        return value
    raise ValueError(f"must be a text or a list of {entries}")


def as_texts(value: object) -> object:
    """Return a single text as a list."""
    return [value] if isinstance(value, str) else text_or_list(value, "texts")


def without_nulls(value: object) -> object:
    """Drop the fields of an object that are null: OpenAI's clients send some so."""
    if not isinstance(value, Mapping):
        return value
    fields = cast("Mapping[object, object]", value)
    return {name: field for name, field in fields.items() if field is not None}


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(as_texts, json_schema_input_type=str | list[str]),
]
Metadata = dict[str, Any]
Detail = Literal["auto", "low", "high", "original"]
