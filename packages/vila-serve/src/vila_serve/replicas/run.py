"""Start and stop the replicas."""

import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from vila_serve.replicas.front import Front, ReplicaDiedError, ReplicasFullError
from vila_serve.replicas.messages import HttpRequest, ResponseStart
from vila_serve.replicas.replica import Replica
from vila_serve.replicas.routing import AffinityRouter

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

APPLICATION = "vila"
OBJECT_STORE_BYTES = 100 * 2**20
"""Requests and answers are small and do not pass through Ray's object store; its default is 30 % of the memory."""


class RayReplicas:
    """Replicas behind a handle of Ray Serve."""

    def __init__(self, handle: "DeploymentHandle"):
        self._handle = handle.options(stream=True)

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


@contextmanager
def start_replicas(
    build: Callable[[], FastAPI], count: int, *, max_requests: int, max_body_bytes: int, gpus_per_replica: float = 0
) -> Iterator[Front]:
    """Start `count` replicas, and stop them at the end of the block.

    Uses the cluster named by `RAY_ADDRESS`, or starts Ray on this machine.

    Args:
        build: makes the application of a replica, in its process.
        count: number of replicas.
        max_requests: how many requests a replica holds, queued ones included. More go to another replica.
        max_body_bytes: longer requests are refused.
        gpus_per_replica: GPUs that each replica has for itself.
    """
    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": OBJECT_STORE_BYTES}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=count,
            max_ongoing_requests=max_requests,
            max_queued_requests=count * max_requests,
            request_router_config=RequestRouterConfig(request_router_class=AffinityRouter),
            health_check_period_s=2,
            health_check_timeout_s=30,
            ray_actor_options={"num_cpus": 0, "num_gpus": gpus_per_replica},
        )
        serve.start(proxy_location="Disabled")
        handle = serve.run(deployment.bind(build), name=APPLICATION, route_prefix=None)
        yield Front(RayReplicas(handle), max_body_bytes=max_body_bytes)
    finally:
        serve.shutdown()
        ray.shutdown()
