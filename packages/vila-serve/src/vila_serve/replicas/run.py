"""Start and stop the replicas."""

import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import ASGIApp

from vila_core.errors import ConfigError
from vila_serve.replicas.front import ReplicaDiedError, ReplicasFullError, create_front
from vila_serve.replicas.messages import HttpRequest, ResponseStart
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
        response: Any = self._handle.answer.remote(request)
        try:
            async for part in response:
                yield part
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaDiedError(str(error)) from None
        except BackPressureError:
            raise ReplicasFullError from None
        finally:
            response.cancel()

    async def metrics(self) -> dict[str, str]:
        """Return the text at /metrics of each replica, by its name. Replicas that do not answer are left out."""
        answers: Any = self._all.broadcast("metrics")
        found = await answers.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        return dict(answer for answer in found if not isinstance(answer, Exception))


@contextmanager
def start_replicas(build: Callable[[], FastAPI], settings: ServeSettings) -> Generator[ASGIApp]:
    """Start `settings.replicas` replicas, yield the front before them, and stop them at the end of the block.

    Uses the cluster named by `RAY_ADDRESS`, or starts Ray on this machine. Its GPUs are shared out evenly.

    Args:
        build: makes the application of a replica, in its process.
        settings: of the server.

    Raises:
        ConfigError: the replicas do not start.
    """
    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": OBJECT_STORE_BYTES}
    level = getattr(logging, settings.log_level.upper())
    _quieten()
    ray.init(include_dashboard=False, log_to_driver=level <= logging.INFO, logging_level=logging.ERROR, **local)
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
        yield create_front(RayReplicas(handle), settings)
    except RuntimeError as error:
        if "Deploying application" not in str(error):
            raise
        raise ConfigError(f"The replicas did not start: {str(error).splitlines()[-1]}") from None
    finally:
        serve.shutdown()
        ray.shutdown()


def _gpus_per_replica(settings: ServeSettings) -> float:
    """Return a whole number of GPUs, or a part of one if there are fewer GPUs than replicas."""
    if settings.device == "cpu":
        return 0
    share = float(ray.cluster_resources().get("GPU", 0)) / settings.replicas
    return math.floor(share) if share >= 1 else share


def _quieten() -> None:
    """Leave the log to the server: Ray Serve would write every request to it a second time."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
