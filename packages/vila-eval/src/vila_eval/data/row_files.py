"""Reads the rows of a JSON, JSONL, CSV or TSV file. What spreadsheets write is understood, or refused by name.

Lines end at a line feed, with or without a carriage return. Unicode's other separators (U+2028, U+0085, …) are text.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from vila_core.input_files import Content, read_input
from vila_eval.data.decoding import decode_text, refuse_known_formats
from vila_eval.errors import DataError
from vila_eval.texts import one_line

MAX_BYTES = 512 * 2**20
"""Largest data file. Its rows are held in memory."""

DELIMITERS = (",", ";", "\t", "|")

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n')
"""Excel's own first line, which names the delimiter."""

_csv_limit = threading.Lock()


def read_rows(path: Path, columns: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read the rows of a .json (a list of objects), .jsonl, .csv or .tsv file.

    Args:
        path: the file.
        columns: columns that the task reads. They decide which delimiter a table has.

    Raises:
        DataError: the file is missing, too large, not a regular file, in another encoding or format, or damaged.
    """
    suffix = path.suffix.lower()
    readers = {".json": _json_rows, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": None, ".tsv": None}
    if suffix not in readers:
        refuse_known_formats(path, b"")
        raise DataError(f"'{path}': expected a .json, .jsonl, .csv or .tsv file.")
    content = read_input(
        path, max_bytes=MAX_BYTES, error=DataError, advice="Give another data file.", content=Content.ANY
    )
    refuse_known_formats(path, content[:512])
    text = decode_text(content, path)
    del content
    reader = readers[suffix]
    if reader is not None:
        return reader(text, path)
    try:
        return _table_rows(text, path, list(columns), "\t" if suffix == ".tsv" else ",")
    except csv.Error as error:
        raise DataError(f"The data file '{path}' cannot be read: {error}.") from None


def _json_lines(text: str, path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if line.strip():
            row = _parse(line, path, f", line {number}")
            if not isinstance(row, dict):
                hint = " Name it .json if the file is one list." if isinstance(row, list) else ""
                _refuse(path, f"line {number} holds a {type(row).__name__}; expected one JSON object per line.{hint}")
            rows.append(cast("dict[str, Any]", row))
    return rows


def _json_rows(text: str, path: Path) -> list[dict[str, Any]]:
    rows = _parse(text, path, "")
    if not isinstance(rows, list):
        raise DataError(f"The data file '{path}' must hold a list of objects (one per row), not a single value.")
    for number, row in enumerate(cast("list[object]", rows), 1):
        if not isinstance(row, dict):
            _refuse(path, f"item {number} is a {type(row).__name__}; expected a list of objects (one per row).")
    return cast("list[dict[str, Any]]", rows)


def _parse(text: str, path: Path, where: str) -> object:
    """Parse JSON. NaN, which pandas writes for a missing value, becomes None. Raises `DataError`."""

    def constant(name: str) -> None:
        if name != "NaN":
            raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = where or f", line {error.lineno}"
        hint = ""
        if error.msg == "Extra data" and not where:
            hint = " Its name ends in .json: if it holds one object per line, name it .jsonl."
        elif where and text.lstrip().startswith(("[", "{")):
            hint = " If the file is one list, name it .json."
        raise DataError(
            f"The data file '{path}'{place} is not JSON: {error.msg} at column {error.colno}.{hint}"
        ) from None
    except RecursionError:
        raise DataError(f"The data file '{path}'{where} is nested too deeply.") from None
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"The data file '{path}'{where} cannot be read: {one_line(str(error), 200)}.") from None


def _table_rows(text: str, path: Path, columns: Sequence[str], default: str) -> list[dict[str, Any]]:
    """Return the rows of delimited text. Every cell is a text; rows without any value are skipped."""
    named = _SEPARATOR_LINE.match(text)
    skipped = 0
    if named:
        text, skipped = text[named.end() :], 1
    delimiter = named[1] if named else _find_delimiter(text, columns, default)
    table = _records(text, delimiter)
    _, header = next(table, (0, []))
    names = _column_names(header, path)
    rows: list[dict[str, Any]] = []
    for number, cells in table:
        if len(cells) > len(names) and not any(cell.strip() for cell in cells[len(names) :]):
            cells = cells[: len(names)]  # commas at the end of the line
        if len(cells) != len(names):
            _refuse(
                path,
                f"the row that ends in line {number + skipped} has {len(cells)} values and the header {len(names)} "
                f"(separated by {_name(delimiter)}). Quote values that contain {_name(delimiter)}.",
            )
        # pandas writes its index as a first column without a name
        unnamed = [index for index, name in enumerate(names) if index and not name and cells[index].strip()]
        if unnamed:
            _refuse(path, f"line {number + skipped} has a value in column {unnamed[0] + 1}, which has no name.")
        rows.append({name: cell for name, cell in zip(names, cells, strict=True) if name})
    return rows


def _find_delimiter(text: str, columns: Sequence[str], default: str) -> str:
    """Return the delimiter with which the header has all `columns`; otherwise, the one that gives most columns."""
    choices = list(dict.fromkeys((default, *DELIMITERS)))
    headers: dict[str, list[str]] = {}
    for delimiter in choices:
        try:
            _, header = next(_records(text, delimiter), (0, []))
        except csv.Error:  # this delimiter does not fit the quotes
            header = []
        headers[delimiter] = [cell.strip() for cell in header]
    for delimiter in choices:
        if columns and set(columns) <= set(headers[delimiter]):
            return delimiter
    return max(choices, key=lambda delimiter: len(headers[delimiter]))


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (last line's number, cells) of each record that has a value. Quoted cells may contain line ends."""
    lines = io.StringIO(text, newline="\n" if "\n" in text else "\r")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        with _unlimited_cells():
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise csv.Error(f"line {reader.line_num}: {_explain(str(error))}") from None
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells


def _explain(problem: str) -> str:
    if "unexpected end of data" in problem:
        return "a quoted value has no closing quote before the end of the file"
    if "new-line character" in problem:
        return "a carriage return stands outside of quotes"
    return f"{one_line(problem, 100)} (write a quote inside a quoted value twice)"


@contextmanager
def _unlimited_cells() -> Generator[None]:
    """Lift the csv module's process-wide limit of 131,072 characters per cell."""
    with _csv_limit:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _column_names(header: Sequence[str], path: Path) -> list[str]:
    """Return the columns' names without surrounding spaces. Names may be empty: commas at the end of lines."""
    names = [name.strip().lstrip("\ufeff") for name in header]
    places: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name and places.setdefault(name, number) != number:
            _refuse(path, f"the header names the column '{one_line(name, 60)}' twice ({places[name]} and {number}).")
    return names


def _name(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, repr(delimiter))


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f"The data file '{path}' cannot be read: {problem}")
