"""Start and stop the replicas."""

import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import ASGIApp

from vila_core.errors import ConfigError, printable
from vila_serve.page.question import PageModel, Question, Shown
from vila_serve.replicas.front import ReplicaDiedError, ReplicasFullError, create_front
from vila_serve.replicas.messages import HttpRequest, ResponseStart
from vila_serve.replicas.page import ReplicaAnswers, with_page
from vila_serve.replicas.replica import Replica
from vila_serve.replicas.routing import AffinityRouter
from vila_serve.settings import ServeSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

APPLICATION = "vila"
METRICS_SECONDS = 5.0
OBJECT_STORE_BYTES = 100 * 2**20
"""Requests and answers are small and do not pass through Ray's object store; its default is 30 % of the memory."""


class RayReplicas:
    """Replicas behind a handle of Ray Serve."""

    def __init__(self, handle: "DeploymentHandle[Any]"):
        self._handle = handle.options(stream=True)
        self._all = handle

    async def answer(self, request: HttpRequest) -> AsyncGenerator[ResponseStart | bytes]:
        """Yield the start of a response, then its body. A consumer that stops cancels the request."""
        async with aclosing(_parts(self._handle.answer.remote(request))) as parts:
            async for part in parts:
                yield part

    async def ask(self, question: Question) -> AsyncGenerator[Shown]:
        """Yield what the chat page shows while a question is answered. A consumer that stops cancels the request."""
        async with aclosing(_parts(self._handle.ask.remote(question))) as parts:
            async for part in parts:
                yield part

    def page_model(self) -> PageModel:
        """Return what the chat page says of the model."""
        answer: Any = self._all.page_model.remote()
        return answer.result()

    async def metrics(self) -> dict[str, str]:
        """Return the text at /metrics of each replica, by its name. Replicas that do not answer are left out."""
        answers: Any = self._all.broadcast("metrics")
        found = await answers.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        return dict(answer for answer in found if not isinstance(answer, Exception))


async def _parts(response: Any) -> AsyncGenerator[Any]:
    """Yield what a replica answers. Raises `ReplicaDiedError` and `ReplicasFullError`."""
    try:
        async for part in response:
            yield part
    except (RayActorError, DeploymentUnavailableError) as error:
        raise ReplicaDiedError(str(error)) from None
    except BackPressureError:
        raise ReplicasFullError from None
    finally:
        response.cancel()


@contextmanager
def start_replicas(build: Callable[[], FastAPI], settings: ServeSettings) -> Generator[ASGIApp]:
    """Start `settings.replicas` replicas, yield the front before them, and stop them at the end of the block.

    Uses the cluster named by `RAY_ADDRESS`, or starts Ray on this machine. Its GPUs are shared out evenly.

    Args:
        build: makes the application of a replica, in its process.
        settings: of the server.

    Raises:
        ConfigError: Ray or the replicas do not start.
    """
    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": OBJECT_STORE_BYTES}
    level = getattr(logging, settings.log_level.upper())
    _quieten()
    try:
        ray.init(include_dashboard=False, log_to_driver=level <= logging.INFO, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises plain exceptions, such as for a machine that is too busy
        raise ConfigError(f"Ray did not start: {printable(str(error)).rstrip('.')}.") from error
    held = settings.max_batch + settings.max_queue  # more go to another replica
    router: Any = AffinityRouter  # Ray's annotation allows names only
    deployment: Any = serve.deployment(
        Replica,
        name="replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=held,
        max_queued_requests=settings.replicas * held,
        request_router_config=RequestRouterConfig(request_router_class=router),
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={"num_cpus": 0, "num_gpus": _gpus_per_replica(settings)},
    )
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        handle = serve.run(deployment.bind(build), name=APPLICATION, route_prefix=None)
        replicas = RayReplicas(handle)
        yield create_front(replicas, settings, _page(replicas, settings) if settings.wants_page else None)
    except RuntimeError as error:
        if "Deploying application" not in str(error):
            raise
        raise ConfigError(f"The replicas did not start: {str(error).splitlines()[-1]}") from None
    finally:
        serve.shutdown()
        ray.shutdown()


def _page(replicas: RayReplicas, settings: ServeSettings) -> Callable[[ASGIApp], ASGIApp]:
    """Return what puts the chat page before the front."""
    answers, model = ReplicaAnswers(replicas.ask, max_bytes=settings.max_request_bytes), replicas.page_model()
    return lambda front: with_page(front, answers, model, settings)


def _gpus_per_replica(settings: ServeSettings) -> float:
    """Return a whole number of GPUs, or a part of one if there are fewer GPUs than replicas."""
    if settings.device == "cpu":
        return 0
    share = float(ray.cluster_resources().get("GPU", 0)) / settings.replicas
    return math.floor(share) if share >= 1 else share


def _quieten() -> None:
    """Leave the log to the server: Ray Serve would write every request to it a second time."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
