"""Responses of /v1/models, /health and /ready."""

from typing import Literal

from vila_serve.api.schemas.base import Schema


class ModelCard(Schema):
    """A model that this server serves. The last three fields are not part of OpenAI's API."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int
    modalities: tuple[str, ...] = ("text", "image", "video")
    output_modalities: tuple[str, ...]


class ModelList(Schema):
    """The models that this server serves: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Schema):
    """Whether the server works."""

    status: Literal["ok", "starting", "stopping", "failed"]
    model: str
