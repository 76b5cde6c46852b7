"""Append-only files of lines: appended lines are on disk, and a line cut off by a crash is removed."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

BLOCK = 65536


def open_to_append(path: Path) -> BinaryIO:
    """Open a file for appending lines; create it and its folder if needed. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b", buffering=0)
    cut_torn_line(file)
    return file


def cut_torn_line(file: BinaryIO) -> None:
    """Truncate the file after its last line end, removing what an interrupted write left."""
    end = position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - BLOCK)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            position = start + found + 1
            break
        position = start
    if position < end:
        file.truncate(position)
    file.seek(0, os.SEEK_END)


def append_lines(file: BinaryIO, text: str) -> None:
    """Append lines, as UTF-8; they are on disk when this returns. If that fails, none of them is left.

    Args:
        file: opened without a buffer, which would be written again when the file is closed.
        text: the lines, with their ends.

    Raises:
        OSError: the disk is full or fails.
    """
    assert text.endswith("\n"), "a line without its end is taken for a torn one"
    content = memoryview(text.encode(errors="backslashreplace"))
    end = file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise
