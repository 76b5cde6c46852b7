"""Limits on untrusted images and videos, and on where they may come from.

Every limit is checked before the work it bounds: bytes before more is read, pixels before decoding.
The defaults suit your own machine. A server should use tighter limits, and `fetch=None` or a list of allowed hosts.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from vila_core.config import Listed, Settings

Seconds = Annotated[float, Field(gt=0, le=1_000_000)]

Port = Annotated[int, Field(gt=0, lt=65536)]

MIB = 1024 * 1024
_HOST = re.compile(r"\.?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[?[0-9a-f:.]*:[0-9a-f:.]*\]?")


def _check_hosts(hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the hosts in lower case and without a final dot."""
    return None if hosts is None else tuple(check_host(host) for host in hosts)


def check_host(text: str) -> str:
    """Return an allowed host in lower case and without a final dot. Raises `ValueError` if it is not a host."""
    host = text.lower().removesuffix(".")
    if host.startswith("*."):
        raise ValueError(f"has {text!r}: write it with a leading dot, {host[1:]!r}, for all subdomains")
    if not host.isascii():
        raise ValueError(f"has {text!r}: write the host in its xn-- form")
    if not _HOST.fullmatch(host) or ".." in host:
        raise ValueError(f"has {text!r}: expected a host such as 'example.org', without scheme, port or path")
    return host.strip("[]")


class FetchPolicy(Settings):
    """What `vila_core.media.fetch.fetch` may access.

    Attributes:
        allowed_hosts: hosts that may be contacted; a leading dot (`.example.org`) allows all subdomains, but not the
            domain itself. None for all public hosts.
        allowed_ports: ports that may be contacted. None for all.
        max_bytes: size limit of one response body.
        timeout_s: total time limit, including redirects.
        idle_timeout_s: time limit for each wait for data.
        max_redirects: number of redirects to follow.
        ca_file: PEM certificates to trust instead of the system's.
        allow_http: allow plain http, for tests and closed networks.
        allow_private: allow addresses that are not public (loopback, private networks), for tests and closed networks.
    """

    allowed_hosts: Annotated[Listed[str] | None, AfterValidator(_check_hosts)] = None
    allowed_ports: Listed[Port] | None = None
    max_bytes: PositiveInt = 512 * MIB
    timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 10.0
    max_redirects: NonNegativeInt = 3
    ca_file: Path | None = None
    allow_http: bool = False
    allow_private: bool = False


class MediaLimits(Settings):
    """Limits on media. Raise one with e.g. `MediaLimits(max_pixels=400_000_000)`.

    Attributes:
        max_image_bytes: size of an image file, response or bytes object.
        max_pixels: width x height of an image or video frame, read from the header before decoding.
        max_video_bytes: size of a video file, response or bytes object.
        max_video_seconds: length of a video.
        max_frames: frames sampled from one video, or given as a list.
        max_video_pixels: width x height x sampled frames, which bounds the memory of a decoded video (3 bytes per
            pixel).
        max_pixels_per_byte: pixels that a video may decode to per byte of its file, beyond `max_video_pixels`. It stops
            files of a few kilobytes that take minutes and gigabytes; screen recordings have at most a few hundred.
        fetch: policy for https URLs; None refuses all URLs.
    """

    max_image_bytes: PositiveInt = 128 * MIB
    max_pixels: PositiveInt = 100_000_000
    max_video_bytes: PositiveInt = 2048 * MIB
    max_video_seconds: PositiveFloat = 4 * 3600.0
    max_frames: PositiveInt = 4096
    max_video_pixels: PositiveInt = 2_000_000_000
    max_pixels_per_byte: PositiveInt = 2_000
    fetch: FetchPolicy | None = FetchPolicy()
