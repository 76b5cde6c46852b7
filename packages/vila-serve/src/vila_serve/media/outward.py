"""What clients learn about a medium that is refused: its kind, and which limit. Details are for the log only.

A message that quotes the input, an address, a path or the words of a library tells strangers about the server.
"""

from vila_core.media.images import FORMATS
from vila_core.media.limits import MIB, MediaLimits
from vila_core.media.sources import DATA_TYPES
from vila_serve.media.messages import Kind

_VIDEO_FORMATS = "MP4, WebM, Matroska, MOV, AVI and other common containers"


def unreadable(kind: Kind) -> str:
    """Return the message for content that cannot be decoded."""
    formats = FORMATS if kind == "image" else _VIDEO_FORMATS
    return f"The {kind} cannot be read: it is damaged, incomplete or not in a supported format ({formats})."


def too_slow(kind: Kind) -> str:
    """Return the message for content that takes too long to decode."""
    return f"The {kind} takes too long to decode. Send a smaller or simpler one."


def wrong_source(kind: Kind, limits: MediaLimits) -> str:
    """Return the message for a text that is not the URI of a medium."""
    types = DATA_TYPES["Image" if kind == "image" else "Video"]
    urls = " or an https URL of an allowed host" if limits.fetch is not None else ""
    return (
        f"The {kind} must be given as a URI of the form 'data:{types[0]};base64,…'{urls}. Its base64 must be "
        f"complete, and its type one of {', '.join(types)}."
    )


def refused_url(kind: Kind, limits: MediaLimits) -> str:
    """Return the message for a URL that is not fetched."""
    if limits.fetch is None:
        return f"This server does not fetch URLs. Send the {kind} itself, as a data: URI."
    return f"The URL of the {kind} is refused: only plain https URLs of allowed hosts are fetched."


def failed_fetch(kind: Kind) -> str:
    """Return the message for a URL whose fetch failed. It is the same for all reasons, which tell about networks."""
    return f"The {kind} could not be fetched from its URL. Check the URL, or send the {kind} itself as a data: URI."


def _size(count: int) -> str:
    return f"{count // MIB:,} MiB" if count % MIB == 0 else f"{count:,} bytes"


def over_limit(kind: Kind, limit: str, limits: MediaLimits) -> str:
    """Return the message for a medium over a limit, by the name of the limit."""
    media_bytes = limits.max_image_bytes if kind == "image" else limits.max_video_bytes
    if limit in ("max_image_bytes", "max_video_bytes", "max_bytes"):
        return f"The {kind} is too large: this server takes at most {_size(media_bytes)}."
    if limit in ("timeout_s", "idle_timeout_s"):
        return failed_fetch(kind)
    words = {
        "max_pixels": f"has too many pixels: this server takes at most {limits.max_pixels:,} (width times height)",
        "max_video_seconds": f"is too long: this server takes at most {limits.max_video_seconds:,.0f} s",
        "max_frames": f"would have too many frames: this server samples at most {limits.max_frames:,}",
        "max_video_pixels": f"has too many pixels in its frames: this server takes at most {limits.max_video_pixels:,} "
        "over all frames that are sampled",
        "max_pixels_per_byte": "has far more pixels than a file of its size should. Encode it again",
    }
    return f"The {kind} {words.get(limit, 'has a shape or an encoding that this server does not take')}."
