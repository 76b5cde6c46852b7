"""Opens a media source (path, https URL, data: URI or bytes) as a file, within its size limit."""

import base64
import binascii
import io
import os
import re
import stat
from typing import IO

from vila_core.errors import DataUriError, FetchError, MediaError, MediaLimitError
from vila_core.input_files import Content, open_input
from vila_core.media.limits import MediaLimits
from vila_core.media.signatures import Kind
from vila_core.media.urls import shorten_url

ByteSource = str | os.PathLike[str] | bytes

_URL_START = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_START = re.compile(r"data:", re.IGNORECASE)
_MAX_HEADER = 1000
"""Characters of a `data:` URI before its comma."""
_ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0A": "", "%0D": "", "%20": ""}
DATA_TYPES: dict[Kind, tuple[str, ...]] = {
    "Image": (
        "image/png",
        "image/jpeg",
        "image/jpg",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
        "image/avif",
        "image/heic",
        "image/heif",
        "image/x-portable-pixmap",
    ),
    "Video": (
        "video/mp4",
        "video/webm",
        "video/quicktime",
        "video/x-matroska",
        "video/x-msvideo",
        "video/mpeg",
        "video/mp2t",
        "video/3gpp",
        "video/ogg",
        "video/x-flv",
        "video/x-m4v",
        "video/x-ms-wmv",
        "image/gif",
    ),
}
"""Media types that a `data:` URI may state. The first bytes of the content decide what it is."""


def is_url(source: str) -> bool:
    """Return whether a string is a URL (of any scheme) rather than a path."""
    return bool(_URL_START.match(source))


def is_data_uri(source: str) -> bool:
    """Return whether a string is a `data:` URI."""
    return bool(_DATA_START.match(source))


def describe(source: ByteSource) -> str:
    """Return a short name of a source for messages, without its content."""
    if isinstance(source, bytes):
        return f"({len(source):,} bytes)"
    if isinstance(source, str) and is_data_uri(source):
        return f"({source[:40].partition(',')[0]} of {len(source):,} characters)"
    if isinstance(source, str) and is_url(source):
        return shorten_url(source)
    text = os.fspath(source)
    return repr(text if len(text) <= 120 else f"{text[:40]}…{text[-60:]}")


def open_source(source: ByteSource, kind: Kind, limits: MediaLimits) -> IO[bytes]:
    """Open a source as a seekable file, positioned at its start.

    Raises:
        MediaError: the source is missing, unreadable, empty, over the limit, a folder, device or pipe, or a URL that
            is refused or fails.
    """
    name = f"{kind} {describe(source)}"
    limit, field = (
        (limits.max_image_bytes, "max_image_bytes") if kind == "Image" else (limits.max_video_bytes, "max_video_bytes")
    )
    if isinstance(source, str) and is_url(source):
        if limits.fetch is None:
            raise FetchError(f"{name}: URLs are disabled here. Send the file itself.")
        from vila_core.media.fetch import fetch  # imports ssl, which only URLs need

        return fetch(source, limits.fetch, limit)
    if isinstance(source, str) and is_data_uri(source):
        source = _decode_data_uri(source, kind, name, limit, field)
    if isinstance(source, bytes):
        _check_bytes(len(source), name, limit, field)
        return io.BytesIO(source)
    return _open_path(source, kind, name, limit, field)


def _check_bytes(size: int, name: str, limit: int, field: str) -> None:
    if size == 0:
        raise MediaError(f"{name} is empty (0 bytes). Check how it was written or downloaded.")
    if size > limit:
        raise MediaLimitError(
            f"{name} has {size:,} bytes, more than the limit of {limit:,}. "
            f"Raise it with MediaLimits({field}=…), or use a smaller file.",
            field,
        )


def _open_path(source: str | os.PathLike[str], kind: Kind, name: str, limit: int, field: str) -> IO[bytes]:
    try:
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            advice = "Use Video for a folder of frames." if kind == "Image" else "Use a file."
            raise MediaError(f"{name} is a folder, not a file. {advice}")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or device could block or have side effects
            raise MediaError(f"{name} is a device, pipe or socket, not a file. Save it to a file, or pass its bytes.")
        _check_bytes(status.st_size, name, limit, field)
        # Not a pipe or another file by now? It is opened without waiting, and checked again.
        return open_input(os.fsdecode(source), max_bytes=limit, error=MediaError, advice="", content=Content.ANY)
    except FileNotFoundError:
        raise MediaError(f"{name} does not exist. Check the path.") from None
    except PermissionError:
        raise MediaError(f"{name}: no permission to read it. Check its permissions.") from None
    except (OSError, ValueError):  # the name is too long or has a null character
        raise MediaError(
            f"{name} is not a path that can be opened. Put data:image/png;base64, before base64 text."
        ) from None


def _decode_data_uri(uri: str, kind: Kind, name: str, limit: int, field: str) -> bytes:
    """Return the bytes of a base64 `data:` URI (RFC 2397). Its media type must match `kind`."""
    end = uri.find(",", 0, _MAX_HEADER)
    header, text = (uri[:end], uri[end + 1 :]) if end >= 0 else (uri[:_MAX_HEADER], "")
    media_type, *parameters = header[len("data:") :].lower().split(";")
    known = ", ".join(DATA_TYPES[kind])
    if end < 0 or not parameters or parameters[-1].strip() != "base64":
        raise DataUriError(f"{name}: a data: URI must have the form data:<type>;base64,<text>.")
    if media_type.strip() not in DATA_TYPES[kind]:
        raise DataUriError(f"{name}: media type '{media_type[:40]}' is not among {known}.")
    if "%" in text:  # a program that builds URLs escapes + / = and line ends
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    try:
        digits = text.encode("ascii").translate(None, b" \t\r\n\f\v")
        _check_bytes(len(digits) * 3 // 4 - digits.count(b"=", -2), name, limit, field)
        return base64.b64decode(digits, validate=True)
    except (binascii.Error, ValueError):
        raise DataUriError(
            f"{name}: the text after the comma is not valid base64. Check that it is complete."
        ) from None
