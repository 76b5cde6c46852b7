"""Messages between the server and its decoding processes: JSON with a length before it, and one open file.

Nothing is pickled, and the server believes nothing that it can check: a decoder that a hostile file has taken over must
not reach the server.
"""

import os
import socket
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from vila_core.media.limits import MediaLimits

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4

Kind = Literal["image", "video"]
Problem = Literal["limit", "data_uri", "unreadable", "memory", "bug"]
Side = Annotated[PositiveInt, Field(le=2**31)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Message):
    """What to decode; the content comes as a file.

    Attributes:
        kind: what the client says that it is.
        is_data_uri: the content is the text of a `data:` URI, not a file's.
        limits: on the medium. They have no policy for URLs, since nothing is fetched.
        seconds: after which the process ends itself, in case that the server is gone.
        frames, fps: of a video, as in `Video.load`.
        square: side in pixels that an image is resized to; None for its own size.
    """

    kind: Kind
    is_data_uri: bool
    limits: MediaLimits
    seconds: float
    frames: int = 1
    fps: float = 0.0
    square: int | None = None


class Decoded(_Message):
    """Pictures, whose RGB pixels follow one another in a file.

    Attributes:
        sizes: width and height of each picture.
        order: the picture of each frame; one picture may be several frames.
        indices, timestamps, duration: as in `VideoFrames`.
    """

    sizes: tuple[tuple[Side, Side], ...]
    order: tuple[NonNegativeInt, ...]
    indices: tuple[NonNegativeInt, ...]
    timestamps: tuple[float, ...] | None = None
    duration: float | None = None


class Failed(_Message):
    """Why there are no pictures.

    Attributes:
        problem: its kind.
        detail: for the log only.
        limit: which limit was exceeded.
    """

    problem: Problem
    detail: str
    limit: str | None = None


class Reply(_Message):
    """Exactly one of the two is not None."""

    decoded: Decoded | None = None
    failed: Failed | None = None


def send(channel: socket.socket, message: BaseModel, file: int | None = None) -> None:
    """Send a message, with the descriptor of a file. Raises `OSError` if the other side is gone."""
    text = message.model_dump_json().encode()
    data = len(text).to_bytes(_LENGTH_BYTES, "big") + text
    sent = 0 if file is None else socket.send_fds(channel, [data], [file])
    channel.sendall(data[sent:])


def receive(channel: socket.socket) -> tuple[bytes, int | None]:
    """Return the next message, and the descriptor of its file, which the caller closes.

    Raises:
        EOFError: the other side is gone.
        ValueError: the message is too long.
        TimeoutError: the channel has a timeout, and there was no message or only a part of one.
    """
    start, files, _, _ = socket.recv_fds(channel, _LENGTH_BYTES, 8)
    try:
        length = int.from_bytes(start + _read(channel, _LENGTH_BYTES - len(start)) if start else b"", "big")
        if not start:
            raise EOFError
        if length > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length:,} bytes")
        text = _read(channel, length)
    except BaseException:
        _close(files)
        raise
    _close(files[1:])
    return text, files[0] if files else None


def _read(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = channel.recv(min(count - len(data), 65536))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
