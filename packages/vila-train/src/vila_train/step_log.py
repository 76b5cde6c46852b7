"""Logs of JSON objects, one per line, each with its step; a resumed run continues them."""

import json
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from vila_core.input_files import open_regular_file
from vila_core.new_file import write_file


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; damaged lines, and a file that does not exist, have none."""
    for _, record in _lines(path):
        yield record


def forget_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which a resumed run does again, and damaged lines of a killed run."""
    if path.is_file():
        write_file(path, "".join(line for line, record in _lines(path) if record["step"] <= step))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line that is a record, with its end, and the record."""
    if not path.is_file():
        return
    with TextIOWrapper(open_regular_file(path)[0], encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(cast("dict[str, Any]", record).get("step"), int):
                yield line.rstrip("\n") + "\n", cast("dict[str, Any]", record)
