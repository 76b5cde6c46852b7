"""The routing policy: requests with the same key go to the same replica while it has room."""

import hashlib

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from vila_serve.page.question import Question
from vila_serve.replicas.messages import HttpRequest


class AffinityRouter(RequestRouter):
    """Ranks replicas by rendezvous hashing (Thaler and Ravishankar, 1998).

    Each key has an order of all replicas. When a replica dies, only its keys move; when it is full
    (`max_ongoing_requests`), a request goes to the next in its key's order.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are tried."""
        key = "" if pending_request is None else _key(pending_request)
        ranked = sorted(candidate_replicas, key=lambda replica: rank(key, replica.replica_id.unique_id))
        return [[replica] for replica in ranked]


def rank(key: str, replica: str) -> bytes:
    """Return the place of a replica in a key's order; the lowest comes first."""
    return hashlib.blake2b(f"{key} {replica}".encode(), digest_size=8).digest()


def _key(pending: PendingRequest) -> str:
    request = pending.args[0] if pending.args else None
    return request.affinity if isinstance(request, HttpRequest | Question) else ""
