"""Samples of a JSON list (`.json`) or of JSON Lines (`.jsonl`), found by their place: the file is not held in memory.

Finding them reads the file once, at about 1 GB/s for lines and 100 MB/s for a list; the places are cached.
"""

import re
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from vila_core.checkpoint.json_files import parse_json_object
from vila_core.errors import CheckpointError
from vila_train.data.conversations import SampleError
from vila_train.data.records.spans import Index, SpanFile, cached_index
from vila_train.errors import DatasetError

MAX_RECORD_BYTES = 64 * 1024 * 1024
"""Of one sample: a document with several embedded pictures has a few megabytes."""
CHUNK_BYTES = 16 * 1024 * 1024
_SHORT_LINE = 8
"""A line of white space up to this length is an empty line; a longer one is a damaged sample."""


class JsonRecords:
    """The objects of a JSON or JSON Lines file.

    Args:
        path: of the file, which is indexed on first use.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = SpanFile(path)
        self._index: Index | None = None

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, state: Path) -> None:
        self.__init__(state)

    @property
    def index(self) -> Index:
        """Start, end and line (or place in the list) of each sample, `[N, 3]`."""
        if self._index is None:
            self._index = cached_index(self.path, "samples", 3, self._find_samples)
            if not len(self._index):
                raise DatasetError(f"'{self.path}' holds no samples. Expected a JSON list, or one sample per line.")
        return self._index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, object]:
        """Return sample `number`. Raises `SampleError` if it is not a JSON object, or too large."""
        start, end, place = map(int, self.index[number])
        where = f"'{self.path.name}', sample {place} (byte {start:,})"
        if end - start > MAX_RECORD_BYTES:
            raise SampleError(f"{where} has {end - start:,} bytes; the limit is {MAX_RECORD_BYTES:,}.", "too large")
        try:
            data = self._file.read(start, end - start)
        except OSError as error:
            raise SampleError(f"{where} cannot be read: {error.strerror or error}.", "unreadable file") from None
        if len(data) < end - start:
            raise SampleError(f"{where} is beyond the end of the file, which changed.", "unreadable file")
        try:
            return parse_json_object(data, where)
        except CheckpointError as error:
            raise SampleError(str(error), "damaged JSON") from None

    def _find_samples(self) -> Index:
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
            DatasetError: the list is not closed, brackets do not match, or something follows it.
        """
        places = np.array(_Elements(self.path).find(self._chunks()), dtype=np.int64).reshape(-1, 2)
        if len(places) == 1 and not self._file.read(int(places[0, 0]), int(places[0, 1] - places[0, 0])).strip():
            places = places[:0]
        return np.column_stack([places, np.arange(1, len(places) + 1, dtype=np.int64)])


_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_IN_LIST = re.compile(rb'(?:[^"{}\[\],]|' + _STRING + rb')*+(["{}\[\],])', re.DOTALL)
_INSIDE = re.compile(rb'(?:[^"{}\[\]]|' + _STRING + rb')*+(["{}\[\]])', re.DOTALL)
"""What is skipped, and the character after it that matters. A quote matters if its string is not complete."""
_OPENERS = {ord("}"): ord("{"), ord("]"): ord("[")}


class _Elements:
    """Finds the elements of a JSON list by its brackets and strings, in one pass and without parsing them."""

    def __init__(self, path: Path):
        self.path = path
        self.places = array("q")
        self._open = bytearray()
        self._start = 0
        self._ended = False

    def find(self, chunks: Iterator[bytes]) -> "array[int]":
        """Return start and end of each element, in turn."""
        rest, base = b"", 0
        for chunk in chain(chunks, [b""]):
            data = rest + chunk
            done = self._read(data, base)
            rest, base = data[done:], base + done
            if len(rest) > MAX_RECORD_BYTES:
                raise self._damaged(base, "a string does not end")
        if not self._ended:
            raise DatasetError(
                f"'{self.path}' is not complete: it ends inside the list, after {len(self.places) // 2:,} samples. "
                "Download it again, or save it as JSON Lines (one sample per line)."
            )
        return self.places

    def _read(self, data: bytes, base: int) -> int:
        """Read the complete tokens of `data`, which is at `base` in the file, and return how many bytes they are."""
        place = 0
        while True:
            if self._ended:
                if data[place:].strip():
                    raise self._damaged(base + place, "something follows the list")
                return len(data)
            found = (_IN_LIST if len(self._open) == 1 else _INSIDE).match(data, place)
            if found is None or found[1] == b'"':
                # No token, or one whose string goes on in the next chunk. What was skipped may end within a string.
                return place
            place = found.end()
            self._token(data[place - 1], base + place)

    def _token(self, character: int, end: int) -> None:
        if character == ord(","):
            self._close_element(end)
        elif character in b"{[":
            self._open.append(character)
            if len(self._open) == 1:
                self._start = end
        else:
            if not self._open or self._open[-1] != _OPENERS[character]:
                raise self._damaged(end, f"a {chr(character)!r} closes nothing")
            if len(self._open) == 1:
                self._close_element(end)
                self._ended = True
            self._open.pop()

    def _close_element(self, end: int) -> None:
        self.places.extend((self._start, end - 1))
        self._start = end

    def _damaged(self, place: int, problem: str) -> DatasetError:
        return DatasetError(
            f"'{self.path}' is not valid JSON: {problem} (near byte {place:,}, sample {len(self.places) // 2 + 1:,})."
        )
