"""Samples of a JSON list (`.json`) or of JSON Lines (`.jsonl`), found by their place: the file is not held in memory.

Finding them reads the file once, at several hundred MB/s for lines and about 100 for a list; the places are cached.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vila_core.checkpoint.json_files import parse_json_object
from vila_core.errors import CheckpointError
from vila_train.data.conversations import SampleError
from vila_train.data.records.spans import Index, IndexedFile
from vila_train.errors import DatasetError

MAX_RECORD_BYTES = 64 * 1024 * 1024
"""Of one sample: a document with several embedded pictures has a few megabytes."""
CHUNK_BYTES = 16 * 1024 * 1024
_SHORT_LINE = 8
"""A line of white space up to this length is an empty line; a longer one is a damaged sample."""


class JsonRecords(IndexedFile):
    """The objects of a JSON or JSON Lines file. The index holds start, end and line (or place in the list) of each.

    Args:
        path: of the file, which is indexed on first use.
    """

    KIND, COLUMNS = "samples", 3
    HINT = ". Expected a JSON list, or one sample per line."

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, object]:
        """Return sample `number`. Raises `SampleError` if it is not a JSON object, or too large."""
        start, end, place = map(int, self.index[number])
        where = f"'{self.path.name}', sample {place} (byte {start:,})"
        data = self._file.read_span(start, end - start, MAX_RECORD_BYTES, where)
        try:
            return parse_json_object(data, where)
        except CheckpointError as error:
            raise SampleError(str(error), "damaged JSON") from None

    def _build_index(self) -> Index:
        first = self._file.read(0, 4096)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DatasetError(f"'{self.path}' is text in UTF-16. Save it as UTF-8.")
        is_list = first.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").startswith(b"[")
        return self._find_elements() if is_list else self._find_lines()

    def _chunks(self) -> Iterator[bytes]:
        place = 0
        try:
            while chunk := self._file.read(place, CHUNK_BYTES):
                yield chunk
                place += len(chunk)
        except OSError as error:
            raise DatasetError(f"'{self.path}' cannot be read: {error.strerror or error}.") from None

    def _find_lines(self) -> Index:
        """Return the lines that are not empty."""
        ends: list[Index] = []
        place, last = 0, b""
        for chunk in self._chunks():
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + place)
            place, last = place + len(chunk), chunk
        if not last.endswith(b"\n"):
            ends.append(np.array([place], dtype=np.int64))
        stops = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), stops[:-1] + 1]) if len(stops) else stops
        lines = np.arange(1, len(stops) + 1, dtype=np.int64)
        kept = stops > starts
        for number in np.flatnonzero(kept & (stops - starts <= _SHORT_LINE)):
            kept[number] = bool(self._file.read(int(starts[number]), int(stops[number] - starts[number])).strip())
        return np.stack([starts, stops, lines], axis=1)[kept]

    def _find_elements(self) -> Index:
        """Return the elements of the list.

        Raises:
            DatasetError: the list is not closed, or something follows it.
        """
        places = _Elements(self.path).find(self._chunks())
        if len(places) == 1 and not self._file.read(int(places[0, 0]), int(places[0, 1] - places[0, 0])).strip():
            places = places[:0]
        return np.column_stack([places, np.arange(1, len(places) + 1, dtype=np.int64)])


_DEPTH = np.zeros(256, np.int8)
_DEPTH[[ord("["), ord("{")]], _DEPTH[[ord("]"), ord("}")]] = 1, -1
_MATTERS = _DEPTH != 0
_MATTERS[ord(",")] = True


class _Elements:
    """Finds the elements of a JSON list by its brackets, commas and strings, without parsing them.

    State between chunks: how deep the brackets are open, and whether a string or an escape goes on.
    """

    def __init__(self, path: Path):
        self.path = path
        self._bounds: list[Index] = []
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._ended = False

    def find(self, chunks: Iterator[bytes]) -> Index:
        """Return start and end of each element, `[N, 2]`."""
        base = 0
        for chunk in chunks:
            self._read(chunk, base)
            base += len(chunk)
        bounds = np.concatenate(self._bounds) if self._bounds else np.zeros(0, np.int64)
        if not self._ended:
            raise DatasetError(
                f"'{self.path}' is not complete: it ends inside the list, after {max(len(bounds) - 1, 0):,} samples. "
                "Download it again, or save it as JSON Lines (one sample per line)."
            )
        return np.stack([bounds[:-1] + 1, bounds[1:]], axis=1)

    def _read(self, chunk: bytes, base: int) -> None:
        """Add the brackets of the list and the commas between its elements, `base` bytes into the file."""
        if self._ended:
            self._require_nothing(chunk, base)
            return
        values = np.frombuffer(chunk, np.uint8)
        quotes = self._quotes(values)
        places = np.flatnonzero(_MATTERS[values])
        places = places[(np.searchsorted(quotes, places) + self._in_string) % 2 == 0]
        self._in_string = bool((len(quotes) + self._in_string) % 2)
        found = values[places]
        depth = self._depth + np.cumsum(_DEPTH[found], dtype=np.int64)
        self._depth = int(depth[-1]) if len(depth) else self._depth
        ends = np.flatnonzero(depth <= 0)
        if len(ends):
            places, found, depth = places[: ends[0] + 1], found[: ends[0] + 1], depth[: ends[0] + 1]
            self._ended = True
            self._require_nothing(chunk[int(places[-1]) + 1 :], base + int(places[-1]) + 1)
        is_comma = found == ord(",")
        is_start = (depth == 1) & (_DEPTH[found] == 1)
        self._bounds.append(places[(is_comma & (depth == 1)) | is_start | (depth == 0)] + base)

    def _quotes(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
        """Return the places of quotes that begin or end a string: those without an odd number of backslashes before."""
        slashes = np.flatnonzero(values == ord("\\"))
        if self._is_escaped and len(slashes) and slashes[0] == 0:
            slashes = slashes[1:]  # the first character is escaped itself
        numbers = np.arange(len(slashes))
        starts = np.ones(len(slashes), bool)
        starts[1:] = np.diff(slashes) > 1
        in_run = numbers - np.maximum.accumulate(np.where(starts, numbers, 0))
        escaped = np.zeros(len(values) + 1, bool)
        escaped[slashes[in_run % 2 == 0] + 1] = True
        escaped[0] = self._is_escaped
        self._is_escaped = bool(escaped[-1])
        quotes = np.flatnonzero(values == ord('"'))
        return quotes[~escaped[quotes]]

    def _require_nothing(self, rest: bytes, place: int) -> None:
        if rest.strip():
            raise DatasetError(f"'{self.path}' is not valid JSON: something follows the list (byte {place:,}).")
