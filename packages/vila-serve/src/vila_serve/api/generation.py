"""From the fields of a request to the settings of its answer."""

from collections.abc import Mapping
from typing import Any

from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import ConfigError, GenerationError
from vila_core.generation.heads import check_kind
from vila_serve.answer_settings import SEEDS, choose_seed
from vila_serve.answering import ModelFacts
from vila_serve.api.errors import ApiError, wrong_setting
from vila_serve.api.schemas.chat import (
    ChatCompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
)
from vila_serve.api.service import Service
from vila_serve.settings import ServeSettings

NEVER = -100.0
SMALLEST_TOP_P = 1e-6
"""OpenAI allows 0, which keeps the likeliest token."""


def generation_configs(request: ChatCompletionRequest, service: Service) -> list[GenerationConfig]:
    """Return the settings of each of the `n` answers. They differ in their seeds: `seed`, `seed` + 1, …

    Raises:
        ApiError: a value is out of range, or two fields contradict each other.
    """
    count, settings = request.n or 1, service.settings
    most = min(settings.max_choices, settings.places)
    if count > most:
        raise ApiError(400, f"'n' is {count}; this server gives at most {most} answers.", param="n")
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    values: dict[str, Any] = {
        **sampling_settings(settings, max_tokens=asked, temperature=request.temperature, top_p=request.top_p),
        "top_k": request.top_k or 0,
        "stop": tuple(request.stop or ()),
        "stop_token_ids": tuple(request.stop_token_ids or ()),
        "logprobs": bool(request.logprobs),
        "top_logprobs": request.top_logprobs or 0,
        **_penalties(request, service),
        **json_settings(request.response_format),
    }
    first = choose_seed(request.seed)
    config = as_config({**values, "seed": first})
    return [config.model_copy(update={"seed": (first + index) % SEEDS}) for index in range(count)]


def as_config(values: Mapping[str, Any], schema_field: str = "response_format") -> GenerationConfig:
    """Return checked settings. Raises `ApiError`; `schema_field` is the field that holds a JSON schema."""
    try:
        return GenerationConfig.model_validate(values)
    except GenerationError as error:
        raise wrong_setting(error, schema_field) from None


def sampling_settings(
    settings: ServeSettings, *, max_tokens: int | None, temperature: float | None, top_p: float | None
) -> dict[str, Any]:
    """Return the generation settings that every request has; None takes the server's default."""
    length = settings.default_max_tokens if max_tokens is None else max_tokens
    return {
        "max_new_tokens": length if settings.max_tokens is None else min(length, settings.max_tokens),
        "temperature": settings.default_temperature if temperature is None else temperature,
        "top_p": max(settings.default_top_p if top_p is None else top_p, SMALLEST_TOP_P),
    }


def require_images(service: Service, param: str) -> None:
    """Raise `ApiError` about the field `param` unless the model draws images."""
    try:
        check_kind(service.model.pictures, "image", service.model_name)
    except ConfigError as error:
        raise ApiError(400, str(error), param=param, code="model_does_not_draw") from None


def without_pictures(model: ModelFacts, *, but: str | None = None) -> dict[int, float]:
    """Return the biases that keep a model from drawing anything `but` one kind."""
    return {picture.start_token: NEVER for kind, picture in model.pictures.items() if kind != but}


def _modal_biases(request: ChatCompletionRequest, service: Service) -> dict[int, float]:
    """Return what keeps a model from drawing if a request does not want pictures.

    Raises:
        ApiError: the request wants pictures of a model that draws none, or pictures only.
    """
    wanted = request.modalities
    if wanted is None:
        return {}
    if "text" not in wanted:
        message = "Answers hold text. Send both 'text' and 'image', or use /v1/images/generations to draw."
        raise ApiError(400, message, param="modalities", code="invalid_value")
    if "image" in wanted:
        require_images(service, "modalities")
        return {}
    return without_pictures(service.model)


def _penalties(request: ChatCompletionRequest, service: Service) -> dict[str, Any]:
    """Return the penalties that a request sets. Zeros and empty objects are left out, since they mean nothing."""
    given: dict[str, Any] = {
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": {**_biases(request.logit_bias or {}), **_modal_biases(request, service)},
    }
    return {name: value for name, value in given.items() if value}


def _biases(biases: Mapping[str, float]) -> dict[int, float]:
    wrong = next((key for key in biases if not (key.isascii() and key.isdigit() and len(key) <= 10)), None)
    if wrong is not None:
        raise ApiError(
            400, f"'logit_bias' maps token ids to numbers, but {wrong[:40]!r} is not one.", param="logit_bias"
        )
    return {int(key): value for key, value in biases.items()}


def json_settings(response_format: ResponseFormat | None) -> dict[str, Any]:
    """Return the generation settings of a response format."""
    if isinstance(response_format, JsonObjectFormat):
        return {"json_mode": True}
    if isinstance(response_format, JsonSchemaFormat):
        schema = response_format.json_schema.schema_
        return {"json_schema": {} if schema is None else schema}
    return {}
