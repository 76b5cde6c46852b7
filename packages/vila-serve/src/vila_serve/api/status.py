"""GET /v1/models, /health, /ready and /metrics."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from vila_serve.api.documentation import ERRORS
from vila_serve.api.errors import SERVER, ApiError
from vila_serve.api.schemas.models import Health, ModelCard, ModelList
from vila_serve.api.service import Service

PATHS = ("/v1/models", "/health", "/ready", "/metrics")


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["status"])
    missing: dict[int | str, dict[str, Any]] = {404: ERRORS[404]}

    def card() -> ModelCard:
        return ModelCard(
            id=service.model_name,
            created=service.created,
            owned_by=service.model_name.rpartition("/")[0] or "vila",
            max_model_len=service.model.max_context,
            output_modalities=("text", *service.model.pictures),
        )

    @routes.get("/v1/models", response_model=ModelList)
    async def list_models() -> ModelList:
        """List the models that this server serves."""
        return ModelList(data=[card()])

    @routes.get("/v1/models/{name:path}", response_model=ModelCard, responses=missing)
    async def get_model(name: str) -> ModelCard:
        """Describe a model."""
        service.check_model(name)
        return card()

    @routes.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Response:
        """Say whether the server works. The only route that never needs a key."""
        is_alive = service.answering.is_alive
        status = Health(status="ok" if is_alive else "failed", model=service.model_name)
        return JSONResponse(status.model_dump(), 200 if is_alive else 503)

    @routes.get("/ready", response_model=Health, responses={503: {"model": Health}})
    async def ready() -> Response:
        """Say whether the server takes requests now: it works, does not stop, and its queue has room."""
        admission = service.admission
        takes_requests = service.answering.is_alive and not admission.is_closing
        if takes_requests and admission.requests >= admission.max_requests:
            raise ApiError(503, "The queue is full.", kind=SERVER, code="queue_full")
        status = Health(status="ok" if takes_requests else "stopping", model=service.model_name)
        return JSONResponse(status.model_dump(), 200 if takes_requests else 503)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return numbers for Prometheus."""
        return Response(await service.metrics_text(), media_type=CONTENT_TYPE_LATEST)

    for route in list(routes.routes):  # monitors and `curl --head` ask without wanting the body
        assert isinstance(route, APIRoute)
        routes.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    return routes
