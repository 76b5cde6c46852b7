"""How much of an untrusted image or video is read, and from where.

Every limit is checked before the work it bounds: bytes before reading on, pixels before decoding.
A server passes tighter limits (and `fetch=None`, or an allowlist) than these, which suit a person's own machine.
"""

from pathlib import Path

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from vila_core.config import Config

MIB = 1024 * 1024


class FetchPolicy(Config):
    """What `vila_core.media.fetch.fetch` may reach.

    allowed_hosts: host names that may be asked; a leading dot (`.example.org`) allows a domain's sub-domains. None: any public host.
    max_bytes: of one answer's body. timeout_s: for everything together, redirects included. idle_timeout_s: without a byte.
    ca_file: PEM certificates to trust instead of the system's.
    allow_http, allow_private: plain http; addresses that are not public (loopback, private networks). For tests and closed networks.
    """

    allowed_hosts: tuple[str, ...] | None = None
    max_bytes: PositiveInt = 512 * MIB
    timeout_s: PositiveFloat = 60.0
    idle_timeout_s: PositiveFloat = 10.0
    max_redirects: NonNegativeInt = 3
    ca_file: Path | None = None
    allow_http: bool = False
    allow_private: bool = False


class MediaLimits(Config):
    """Limits on media. Raise one with e.g. `MediaLimits(max_pixels=400_000_000)`.

    max_image_bytes, max_video_bytes: size of the file, answer or bytes.
    max_pixels: width x height of an image or of one video frame, read from the header before anything is decoded.
    max_video_seconds: length of a video.
    max_frames: frames taken from one video (or given as a list).
    max_video_pixels: width x height x frames taken, for what a video holds in memory once decoded (3 bytes each).
    fetch: what https URLs may reach; None refuses every URL.
    """

    max_image_bytes: PositiveInt = 128 * MIB
    max_pixels: PositiveInt = 100_000_000
    max_video_bytes: PositiveInt = 2048 * MIB
    max_video_seconds: PositiveFloat = 4 * 3600.0
    max_frames: PositiveInt = 4096
    max_video_pixels: PositiveInt = 2_000_000_000
    fetch: FetchPolicy | None = FetchPolicy()
