"""Images and videos of requests: where they may come from, and decoding them in processes with limits.

Names are imported on first use: the processes that decode import this package too, but no torch.
"""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_serve.media.door import MediaDoor
    from vila_serve.media.limits import DecodeLimits, server_limits

__all__ = ["DecodeLimits", "MediaDoor", "server_limits"]

__getattr__ = lazy_attributes(
    "vila_serve.media", {"DecodeLimits": "limits", "MediaDoor": "door", "server_limits": "limits"}
)
