"""The application: routes, limits, the key, and the beginning and end of answering."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from vila_serve import __version__
from vila_serve.answering import Answering, ModelFacts
from vila_serve.api import chat_completions, images, responses, status
from vila_serve.api.admission import Admission
from vila_serve.api.documentation import document
from vila_serve.api.errors import install_handlers
from vila_serve.api.layers import layers
from vila_serve.api.request_ids import RequestIds
from vila_serve.api.service import Service
from vila_serve.api.token_texts import TokenTexts
from vila_serve.media import MediaDoor, server_limits
from vila_serve.observability.metrics import Metrics
from vila_serve.observability.tracing import TraceRequests, Tracing
from vila_serve.page.question import PageModel
from vila_serve.page.turn import Turns
from vila_serve.settings import ServeSettings

if TYPE_CHECKING:
    from vila_core import Vila

ANSWER_PATHS = (*chat_completions.PATHS, responses.PATH, images.PATH)
"""Routes whose requests are counted and limited."""


def create_app(model: "Vila | Answering", settings: ServeSettings | None = None) -> FastAPI:
    """Return the application that serves `model`.

    Args:
        model: a loaded model, whose engine then runs in threads of this process; or what answers with another one.
        settings: how to serve it; None for the environment's.

    Raises:
        ConfigError: one of the settings' `allow_domains` is not a host.
    """
    settings = settings or ServeSettings.read()
    tracing = None if settings.otlp_endpoint is None else Tracing(settings.otlp_endpoint)
    answering = model if isinstance(model, Answering) else Answering.local(model, max_context=settings.max_context)
    door = _door(answering.model, settings)
    service = _service(answering, settings, door, tracing)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        service.answering.start()
        door.start()
        yield
        service.admission.is_closing = True
        await service.answering.stop()
        await asyncio.to_thread(door.close)
        if tracing is not None:
            tracing.shut_down()

    app = FastAPI(
        title="VILA Kit",
        summary="An OpenAI-compatible API for a VILA-family vision-language model.",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # such a redirect would name the host that the client claims to have asked
    )
    app.state.service = service
    app.state.tracing = tracing
    install_handlers(app)
    app.include_router(chat_completions.router(service))
    app.include_router(responses.router(service))
    app.include_router(images.router(service))
    app.include_router(status.router(service))
    document(app)
    _add_layers(app, service, tracing)
    if settings.wants_page:
        from vila_serve.page.page import add_page  # imported here because of gradio, which takes seconds

        add_page(app, Turns(service), PageModel.of(service), settings)
    return app


def _door(model: ModelFacts, settings: ServeSettings) -> MediaDoor:
    """Return the door for media. Raises `ConfigError` for a wrong allowed domain."""
    preprocess = model.config.preprocess
    limits = server_limits(settings.allow_domains, preprocess.num_video_frames)
    is_tiled = preprocess.image_aspect_ratio in ("dynamic", "dynamic_s2")
    tile_size = model.config.pixels.size if is_tiled else None
    return MediaDoor(limits, preprocess.num_video_frames, preprocess.fps, tile_size=tile_size)


def _service(answering: Answering, settings: ServeSettings, media: MediaDoor, tracing: Tracing | None) -> Service:
    return Service(
        settings=settings,
        answering=answering,
        media=media,
        admission=Admission(settings.max_batch + settings.max_queue, settings.max_buffered_bytes),
        metrics=Metrics((*ANSWER_PATHS, *status.PATHS), () if tracing is None else (tracing.answer_ended,)),
        token_texts=TokenTexts(answering.model.tokens),
        created=int(time.time()),
    )


def _add_layers(app: FastAPI, service: Service, tracing: Tracing | None) -> None:
    """Put the layers around the routes. The last one is the outermost."""
    for layer in layers(service.settings, service.admission, ANSWER_PATHS):
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    if tracing is not None:
        app.add_middleware(TraceRequests, tracing=tracing)
    app.add_middleware(RequestIds, observe=service.metrics.request_ended)
