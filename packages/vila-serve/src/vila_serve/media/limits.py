"""Limits on the images and videos of strangers, tighter than those of `vila_core` on your own."""

import os
from collections.abc import Sequence

from pydantic import Field, PositiveFloat, PositiveInt

from vila_core.config import Settings
from vila_core.media.limits import MIB, FetchPolicy, MediaLimits

HTTPS_PORT = 443


class DecodeLimits(Settings):
    """Limits on the processes that decode.

    Attributes:
        workers: processes, and so images and videos that are decoded at the same time.
        memory_bytes: address space that a process may add to what it starts with.
        image_seconds, video_seconds: how long decoding may take before the process is killed.
        max_fetches: URLs that are fetched at the same time.
        max_decoded_bytes: pixels that all requests together may hold in memory; beyond, media are refused for now.
        jobs_per_worker: after so many, a process is replaced, in case a library leaks memory.
    """

    workers: int = Field(default_factory=lambda: max(2, min(8, (os.cpu_count() or 1) // 2)), ge=1, le=256)
    memory_bytes: int = Field(default=2048 * MIB, ge=128 * MIB)
    image_seconds: PositiveFloat = 20.0
    video_seconds: PositiveFloat = 60.0
    max_fetches: PositiveInt = 8
    max_decoded_bytes: PositiveInt = 4096 * MIB
    jobs_per_worker: PositiveInt = 1000


def server_limits(allow_domains: Sequence[str] = (), num_frames: int = 0) -> MediaLimits:
    """Return the limits of a server.

    Args:
        allow_domains: hosts from which media may be fetched; a leading dot allows subdomains. Without any, URLs are
            refused.
        num_frames: frames that the model samples from a video, which are always allowed.

    Raises:
        ConfigError: one of `allow_domains` is not a host.
    """
    image_bytes, video_bytes = 32 * MIB, 128 * MIB
    policy = FetchPolicy(
        allowed_hosts=tuple(allow_domains),
        allowed_ports=(HTTPS_PORT,),
        max_bytes=max(image_bytes, video_bytes),
        timeout_s=30.0,
        idle_timeout_s=5.0,
        max_redirects=2,
    )
    return MediaLimits(
        max_image_bytes=image_bytes,
        max_pixels=64_000_000,
        max_video_bytes=video_bytes,
        max_video_seconds=3600.0,
        max_frames=max(256, num_frames),
        max_video_pixels=150_000_000,
        fetch=policy if allow_domains else None,
    )
