"""Messages between the server's process and the engine's: pickles on a socket pair, large arrays in shared memory.

A message is a length and whether a file comes with it, then the pickle. The file, whose descriptor comes with the first
byte, holds the arrays one after the other; the receiver maps it, so that pixels never pass through the socket. Both
processes are this program, of one user, and nobody else can reach the socket: what is unpickled was pickled here.
"""

import io
import os
import pickle
import socket
import struct
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from vila_core.errors import VilaError
from vila_serve.shared_files import read_file, write_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HEAD = struct.Struct("!Q?")
_SIZES = struct.Struct("!Q")
_CHUNK = 1 << 20
_FILES = 64
"""Files that one call may receive."""
SMALL_PICKLE, SMALL_ARRAYS = 1 << 16, 1 << 20
"""Bytes that are pickled, or copied into shared memory, in less time than a thread takes to wake up under load."""


class LargeMessageError(Exception):
    """Packing a message takes too long for an event loop."""


class Packed:
    """A message as it is sent. The file is closed when this is freed, also if it is never sent.

    Attributes:
        frame: the bytes for the socket.
        file: what comes with the first byte.
    """

    def __init__(self, frame: bytes, file: int | None = None):
        self.frame = frame
        self.file = file

    def __del__(self) -> None:
        if self.file is not None:
            os.close(self.file)


class _Pickler(pickle.Pickler):
    """Turns pictures into arrays, which are not copied into the pickle, and errors into what can be pickled."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, PIL.Image.Image) and value.mode == "RGB":
            return PIL.Image.fromarray, (np.asarray(value),)
        if isinstance(value, VilaError):
            return _restore, (type(value), value.args, vars(value))
        if isinstance(value, BaseException) and not isinstance(value, OSError):  # a library's may not be picklable
            return _describe, (f"{type(value).__name__}: {value}", "".join(traceback.format_exception(value)))
        return NotImplemented


def _restore(kind: type[VilaError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> VilaError:
    """Return the same error, without what its class does to new ones."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


def _describe(text: str, trace: str) -> RuntimeError:
    """Return an error that says what happened in the other process."""
    error = RuntimeError(text)
    error.add_note(f"In the engine's process:\n{trace}")
    return error


class _SmallFile(io.BytesIO):
    """Takes a small pickle only. A large one ends with its first 64 kB, a frame of pickle's protocol."""

    def write(self, data: "Buffer", /) -> int:
        if self.tell() + memoryview(data).nbytes > SMALL_PICKLE:
            raise LargeMessageError
        return super().write(data)


def pack(message: object, *, only_small: bool = False) -> Packed:
    """Return a message as it is sent.

    Raises:
        LargeMessageError: the message is large, and `only_small`.
        OSError: there is no memory for its arrays.
    """
    arrays: list[pickle.PickleBuffer] = []
    stream = _SmallFile() if only_small else io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=arrays.append).dump(message)
    views = [array.raw() for array in arrays]
    if only_small and sum(map(len, views)) > SMALL_ARRAYS:
        raise LargeMessageError
    sizes = b"".join(_SIZES.pack(len(view)) for view in views)
    data = stream.getvalue()
    has_file = any(map(len, views))
    head = _HEAD.pack(_SIZES.size + len(sizes) + len(data), has_file) + _SIZES.pack(len(views))
    file = write_file(views) if has_file else None
    return Packed(b"".join((head, sizes, data)), file)


def unpack(data: bytes, file: int | None) -> Any:
    """Return a message; closes the descriptor."""
    content = memoryview(b"")
    if file is not None:
        try:
            content = memoryview(read_file(file))
        finally:
            os.close(file)
    (count,) = _SIZES.unpack_from(data)
    starts = _SIZES.size * (count + 1)
    arrays: list[memoryview] = []
    for (size,) in _SIZES.iter_unpack(data[_SIZES.size : starts]):
        arrays.append(content[:size])
        content = content[size:]
    return pickle.loads(memoryview(data)[starts:], buffers=arrays)  # noqa: S301 - see above


class Unpacker:
    """Puts messages together from what a socket gives."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._files: deque[int] = deque()

    def messages(self, data: bytes, files: list[int]) -> Iterator[Any]:
        """Add what has arrived; yield the messages that are complete."""
        self._data += data
        self._files.extend(files)
        while len(self._data) >= _HEAD.size:
            length, has_file = _HEAD.unpack_from(self._data)
            end = _HEAD.size + length
            if len(self._data) < end:
                return
            message = bytes(memoryview(self._data)[_HEAD.size : end])
            del self._data[:end]
            yield unpack(message, self._files.popleft() if has_file else None)


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return what has arrived: bytes (none if the other side is gone) and descriptors."""
    data, files, _, _ = socket.recv_fds(channel, _CHUNK, _FILES, socket.MSG_CMSG_CLOEXEC)
    return data, files


class BlockingChannel:
    """Sends and receives messages in threads that may wait."""

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self._lock = threading.Lock()
        self._unpacker = Unpacker()

    def send(self, message: object) -> None:
        """Send a message. Called in any thread. Raises `OSError` if the other side is gone."""
        packed = pack(message)
        frame = memoryview(packed.frame)
        with self._lock:
            if packed.file is not None:
                sent = socket.send_fds(self._channel, [frame], [packed.file])
                frame = frame[sent:]
            self._channel.sendall(frame)

    def receive(self) -> Iterator[Any]:
        """Yield messages until the other side is gone."""
        while True:
            try:
                data, files = receive(self._channel)
            except ConnectionError:
                return
            if not data:
                return
            yield from self._unpacker.messages(data, files)
