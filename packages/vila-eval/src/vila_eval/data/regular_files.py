"""Reading files of unknown origin: only regular files, and only up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vila_eval.errors import DataError


def open_regular_file(path: Path) -> tuple[BinaryIO, int]:
    """Open a file for reading and return it with its size, without waiting for a pipe or device.

    Raises:
        OSError: it is missing, cannot be opened, or is not a regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise FileNotFoundError(2, "the name contains a null character") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, device or socket"
            raise OSError(22, f"it is {kind}, not a file")
        return os.fdopen(handle, "rb"), status.st_size
    except BaseException:
        os.close(handle)
        raise


def read_regular_file(path: Path, most: int, what: str) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes. Raises `DataError`, which begins with `what`."""
    try:
        file, size = open_regular_file(path)
    except FileNotFoundError:
        raise DataError(f"{what} '{path}' is not there.") from None
    except OSError as error:
        raise DataError(f"{what} '{path}' cannot be read: {error.strerror}.") from None
    with file:
        if size > most:
            raise DataError(f"{what} '{path}' has {size:,} bytes, more than the limit of {most:,}. Split it.")
        try:
            return file.read(most + 1)[:most]
        except OSError as error:
            raise DataError(f"{what} '{path}' cannot be read: {error.strerror}.") from None
