"""Append-only files of lines: appended lines are on disk, and a line cut off by a crash is removed."""

import os
from pathlib import Path
from typing import BinaryIO

BLOCK = 65536


def open_to_append(path: Path) -> BinaryIO:
    """Open a file for appending lines; create it and its folder if needed. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
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
    """Append lines in one write, as UTF-8; they are on disk when this returns. Raises `OSError`."""
    assert text.endswith("\n"), "a line without its end is taken for a torn one"
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())
