"""Opening files that others made: checkpoints, adapters, datasets, results. Every such file is opened here.

Only a regular file of a reasonable size is opened: a named pipe or a device would be waited for without end, and a
sparse file of a terabyte would be read. A file that holds something else than its name says (a Git LFS pointer, a
saved web page) is refused by what it is.
"""

import errno
import os
import shutil
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from vila_core.errors import CheckpointError, VilaError
from vila_core.file_contents import describe_archive, describe_stand_in, special_kind

DOWNLOAD_AGAIN = "Download the checkpoint again."

_PREFIX_BYTES = 1024
_UNFINISHED_SUFFIXES = (".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2")


class Content(Enum):
    """The kinds of content that a file may hold."""

    ANY = "anything, such as the text of a license"
    PLAIN = "uncompressed text or tensors"
    ARCHIVE = "possibly a compressed file or an archive"


class NotRegularError(OSError):
    """A folder, pipe, device or socket is where a file was expected; `kind` says which."""

    def __init__(self, kind: str):
        super().__init__(errno.EINVAL, f"it is {kind}, not a regular file")
        self.kind = kind


def open_regular_file(path: str | Path) -> tuple[BinaryIO, int]:
    """Open a file for reading and return it with its size. It never waits for a pipe or device.

    For code that handles `OSError`; elsewhere, `open_input` has the messages.

    Raises:
        OSError: the file is missing, cannot be opened, or is not regular (`NotRegularError`).
    """
    try:
        _require_regular(os.stat(path))  # before opening: a device may act on being opened
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as problem:  # a null character, a lone surrogate
        raise OSError(errno.EINVAL, f"it is not a possible file name: {problem}") from None
    file = os.fdopen(descriptor, "rb")
    try:
        status = os.fstat(descriptor)
        _require_regular(status)  # the same file as a moment ago?
    except BaseException:
        file.close()
        raise
    return file, status.st_size


def open_input(
    path: str | Path,
    *,
    max_bytes: int,
    error: type[VilaError] = CheckpointError,
    advice: str = DOWNLOAD_AGAIN,
    content: Content = Content.PLAIN,
) -> BinaryIO:
    """Open a file that others made, for reading bytes. It never waits for a pipe or device.

    Args:
        path: of the file; symbolic links are followed.
        max_bytes: the largest size that such a file may have.
        error: class of the error to raise.
        advice: last sentence of the error, what to do.
        content: refuses Git LFS pointers, web pages and, if `PLAIN`, compressed files.

    Raises:
        VilaError: `error`, if the file is missing, unreadable, not a regular file, too large, or holds something else.
    """
    path = Path(path)
    try:
        file, size = open_regular_file(path)
    except OSError as problem:
        raise _cannot_open(path, problem, error, advice) from None
    try:
        if size > max_bytes:
            raise error(_too_large(path, size, max_bytes, advice))
        if content is not Content.ANY:
            if os.path.isfile(f"{path}.aria2"):  # the file has its full size from the start
                raise error(f"'{path}' is an unfinished download ('{path.name}.aria2' lies beside it). Finish it.")
            prefix = file.read(_PREFIX_BYTES)
            found = describe_stand_in(prefix) or (describe_archive(prefix) if content is Content.PLAIN else None)
            if found is not None:
                raise error(f"'{path}' is {found.what}. {found.advice or advice}")
            file.seek(0)
    except OSError as problem:
        file.close()
        raise _cannot_open(path, problem, error, advice) from None
    except BaseException:
        file.close()
        raise
    return file


def check_input(
    path: str | Path,
    *,
    max_bytes: int,
    error: type[VilaError] = CheckpointError,
    advice: str = DOWNLOAD_AGAIN,
    content: Content = Content.PLAIN,
) -> None:
    """Raise as `open_input` does, for a file that another library will open."""
    open_input(path, max_bytes=max_bytes, error=error, advice=advice, content=content).close()


def read_input(
    path: str | Path,
    *,
    max_bytes: int,
    error: type[VilaError] = CheckpointError,
    advice: str = DOWNLOAD_AGAIN,
    content: Content = Content.PLAIN,
) -> bytes:
    """Return the bytes of a file that others made. Raises as `open_input` does."""
    with open_input(path, max_bytes=max_bytes, error=error, advice=advice, content=content) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as problem:
            raise _cannot_open(Path(path), problem, error, advice) from None
    if len(data) > max_bytes:
        raise error(_too_large(Path(path), len(data), max_bytes, advice))
    return data


def read_input_text(
    path: str | Path,
    *,
    max_bytes: int,
    error: type[VilaError] = CheckpointError,
    advice: str = DOWNLOAD_AGAIN,
    content: Content = Content.PLAIN,
) -> str:
    """Return the text of a file that others made: UTF-8, or UTF-16 with a byte order mark, which is left out.

    Raises:
        VilaError: as `open_input` does, and for other encodings.
    """
    data = read_input(path, max_bytes=max_bytes, error=error, advice=advice, content=content)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        raise error(
            f"'{path}' is not text in UTF-8: byte {problem.start:,} is 0x{data[problem.start]:02x}. {advice}"
        ) from None


def copy_input(
    path: str | Path,
    target: Path,
    *,
    max_bytes: int,
    error: type[VilaError] = CheckpointError,
    advice: str = DOWNLOAD_AGAIN,
    content: Content = Content.ANY,
) -> None:
    """Copy a file that others made to `target`. Raises as `open_input` does, and `OSError` for the target."""
    source = open_input(path, max_bytes=max_bytes, error=error, advice=advice, content=content)
    with source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def find_unfinished(path: Path) -> Path | None:
    """Return the unfinished download of `path` that lies beside it, such as `model.safetensors.part`, if any."""
    beside = (path.with_name(path.name + suffix) for suffix in _UNFINISHED_SUFFIXES)
    return next((file for file in beside if os.path.isfile(file)), None)


def _require_regular(status: os.stat_result) -> None:
    if (kind := special_kind(status.st_mode)) is not None:
        raise NotRegularError(kind)


def _too_large(path: Path, size: int, max_bytes: int, advice: str) -> str:
    return f"'{path}' has {size:,} bytes, more than the {max_bytes:,} that such a file may have. {advice}"


def _cannot_open(path: Path, problem: OSError, error: type[VilaError], advice: str) -> VilaError:
    if isinstance(problem, NotRegularError):
        return error(f"'{path}' is {problem.kind}; expected a regular file. {advice}")
    if isinstance(problem, FileNotFoundError):
        if path.is_symlink():
            return error(f"'{path}' is a symbolic link to '{os.readlink(path)}', which does not exist. {advice}")
        unfinished = find_unfinished(path)
        if unfinished is not None:
            return error(f"'{path}' is missing; '{unfinished.name}' is an unfinished download. Finish the download.")
        return error(f"'{path}' is missing. {advice}")
    if problem.errno == errno.ELOOP:
        return error(f"'{path}' is a symbolic link that leads back to itself. {advice}")
    return error(f"'{path}' cannot be read: {problem.strerror or problem}.")
