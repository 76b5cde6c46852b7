"""The layers that a server has around its routes, and several replicas have around their front."""

from collections.abc import Collection

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from vila_serve.api.admission import Admission
from vila_serve.api.bodies import RequestBodies
from vila_serve.api.keys import ApiKey
from vila_serve.settings import ServeSettings

EXPOSED_HEADERS = ("x-request-id", "retry-after")
"""Headers that scripts of other sites may read, besides those that browsers always show."""


def layers(settings: ServeSettings, admission: Admission, answer_paths: Collection[str]) -> list[Middleware]:
    """Return limits on requests, the key, and which web pages may call; the first is the innermost.

    A browser asks without the key whether a page may call, so that this is answered outside of the key's layer.

    Args:
        settings: of the server.
        admission: counts the requests in progress.
        answer_paths: routes whose requests are counted and limited.
    """
    bodies = Middleware(
        RequestBodies,
        paths=answer_paths,
        admission=admission,
        max_bytes=settings.max_request_bytes,
        timeout=settings.body_timeout,
    )
    made = [bodies]
    if settings.api_key is not None:
        made.append(Middleware(ApiKey, key=settings.api_key.get_secret_value()))
    if settings.cors_origins:
        made.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    return made
