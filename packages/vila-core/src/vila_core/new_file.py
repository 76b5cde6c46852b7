"""Writing a file completely or not at all: it gets its name only when everything in it is written. And logs."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vila_core.errors import OutputError
from vila_core.file_contents import special_kind


@contextmanager
def new_file(path: Path) -> Generator[Path]:
    """Yield the path of a temporary file beside `path`, which replaces `path` if the block succeeds.

    Raises:
        OutputError: the folder does not exist, is read-only, or the disk is full; or `path` is a device, a pipe or a
            folder, which is not replaced. No part of the file is left behind.
    """
    temporary: Path | None = None
    try:
        _require_replaceable(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~umask())
        yield temporary
        temporary.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        _remove(temporary)
        if not isinstance(error, OSError) and temporary is not None:
            raise
        raise cannot_write(path, error) from error
    except BaseException:  # an interrupted run leaves nothing behind either
        _remove(temporary)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8, line ends unchanged) or bytes to `path`, completely or not at all. Raises `OutputError`."""
    with new_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def open_log(path: Path) -> TextIO:
    """Open a text file (UTF-8) for adding lines, each of which is in the file at once. It never waits for a pipe.

    Raises:
        OutputError: it cannot be written, or is a device, a pipe or a folder.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    try:
        _require_replaceable(path)
        descriptor = os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    file = os.fdopen(descriptor, "a", buffering=1, encoding="utf-8")
    try:
        _require_regular(os.fstat(descriptor))  # the same file as a moment ago?
    except OSError as error:
        file.close()
        raise cannot_write(path, error) from error
    return file


def require_file(path: Path) -> None:
    """Raise `OutputError` if `path` is a device, a pipe or a folder, in whose place no file can be written."""
    try:
        _require_replaceable(path)
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing. Raises `OutputError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError | ValueError) -> OutputError:
    """Return the error for a file or folder that could not be written."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"'{path}' was not written: the disk is full. Free some space, or choose another disk.")
    if isinstance(error, FileNotFoundError):
        return OutputError(f"'{path}' was not written: the folder '{path.parent}' does not exist. Create it first.")
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return OutputError(f"'{path}' cannot be written: {reason}. Choose another path.")


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files of `new_file` in a folder: of killed processes, and of any that is writing there."""
    return [path for path in folder.glob(".*.????????.part") if path.is_file()]  # as mkstemp names them


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder in which no process is writing."""
    for left in leftovers(folder):
        left.unlink(missing_ok=True)


def _require_replaceable(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        _require_regular(os.stat(path))


def _require_regular(status: os.stat_result) -> None:
    if (kind := special_kind(status.st_mode)) is not None:  # /dev/null too: replacing it would break the system
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")


def umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()
