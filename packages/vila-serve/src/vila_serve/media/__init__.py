"""Images and videos of requests: where they may come from, and decoding them in processes with limits."""

from vila_serve.media.door import MediaDoor
from vila_serve.media.limits import DecodeLimits, server_limits

__all__ = ["DecodeLimits", "MediaDoor", "server_limits"]
