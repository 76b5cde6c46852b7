"""Pieces of a large file by their place, read without a shared position, and cached indexes of such places.

An index is an array of whole numbers, kept in a file beside the data, or in the user's cache folder if that folder is
read-only. It is used while the data has the same size and time of modification.

N records
"""

import contextlib
import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from vila_core.errors import OutputError
from vila_core.input_files import Content, open_input, open_regular_file
from vila_core.new_file import make_folder, new_file
from vila_train.data.conversations import SampleError
from vila_train.errors import DatasetError

VERSION = 1
"""Of the indexes' layout; an index of another version is made anew."""

MAX_OPEN = 64
"""Files that are kept open: a data set may have thousands, and systems often allow 1024."""

Index = npt.NDArray[np.int64]


class SpanFile:
    """A file whose bytes several processes read, also ones that were forked while it was open.

    Args:
        path: of the file. It is opened on first use; of all such files, the last `MAX_OPEN` stay open.
        content: what it may hold; see `open_input`.
    """

    _open: ClassVar[OrderedDict[int, "SpanFile"]] = OrderedDict()

    def __init__(self, path: Path, content: Content = Content.PLAIN):
        self.path, self.content = path, content
        self._file: BinaryIO | None = None

    def __getstate__(self) -> tuple[Path, Content]:
        return self.path, self.content

    def __setstate__(self, state: tuple[Path, Content]) -> None:
        self.__init__(*state)

    @property
    def file(self) -> BinaryIO:
        """The open file. Raises `DatasetError` if it is missing or holds something else than its name says."""
        if self._file is None:
            self._file = open_input(
                self.path, max_bytes=sys.maxsize, error=DatasetError, advice="Check the path.", content=self.content
            )
            self._open[id(self)] = self
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        else:
            self._open.move_to_end(id(self))
        return self._file

    def close(self) -> None:
        """Close the file. It is opened again when it is needed."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._open.pop(id(self), None)

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer at the end of the file. Raises `OSError`."""
        if sys.platform == "win32":  # processes are not forked there, so none shares the position
            self.file.seek(start)
            return self.file.read(length)
        return os.pread(self.file.fileno(), length, start)

    def read_span(self, start: int, length: int, limit: int, where: str) -> bytes:
        """Return exactly `length` bytes from `start`.

        Args:
            start: first byte.
            length: in bytes.
            limit: bytes that a span may have.
            where: begins the messages of errors.

        Raises:
            SampleError: the span is longer than `limit`, cannot be read, or is not in the file any more.
        """
        if length > limit:
            raise SampleError(f"{where} has {length:,} bytes; the limit is {limit:,}.", "too large")
        try:
            data = self.read(start, length)
        except OSError as error:
            raise SampleError(f"{where} cannot be read: {error.strerror or error}.", "unreadable file") from None
        if len(data) < length:
            raise SampleError(f"{where} is beyond the end of the file, which changed.", "unreadable file")
        return data


class IndexedFile(ABC):
    """A data file with an index of places, made or read from its cache on first use. Only the path is pickled.

    Args:
        path: of the file.
    """

    KIND: ClassVar[str]
    """Of the index; see `cached_index`."""
    COLUMNS: ClassVar[int]
    """Of the index."""
    HINT: ClassVar[str]
    """What a file with samples would hold, for the message about one without."""
    CONTENT: ClassVar[Content] = Content.PLAIN
    """What the file may hold; see `SpanFile`."""

    def __init__(self, path: Path):
        self.path = path
        self._file = SpanFile(path, self.CONTENT)
        self._index: Index | None = None

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, state: Path) -> None:
        self.__init__(state)

    @property
    def index(self) -> Index:
        """Places in the file, `[N, COLUMNS]`. Raises `DatasetError` if there is none."""
        if self._index is None:
            self._index = cached_index(self.path, self.KIND, self.COLUMNS, self._build_index)
            if not len(self._index):
                raise DatasetError(f"'{self.path}' holds no samples{self.HINT}")
        return self._index

    @abstractmethod
    def _build_index(self) -> Index:
        """Read the file and return its index."""


def cached_index(path: Path, kind: str, columns: int, build: Callable[[], Index]) -> Index:
    """Return the index of a data file, from its cache or newly made.

    Args:
        path: of the data file.
        kind: of the index, part of its file's name.
        columns: of the index.
        build: makes the index, `[N, columns]`.

    Raises:
        DatasetError: the data file is missing or unreadable.
    """
    try:
        file, size = open_regular_file(path)
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read: {error.strerror or error}. Check the path.") from None
    with file:
        state = np.array([VERSION, size, os.fstat(file.fileno()).st_mtime_ns], dtype=np.int64)
    places = index_files(path, kind)
    for place in places:
        if (found := _read(place, state, columns)) is not None:
            return found
    index = build()
    for place in places:
        try:
            _write(place, state, index)
            break
        except OutputError:  # a read-only folder, a full disk: the next place, or none
            continue
    return index


def index_files(path: Path, kind: str) -> list[Path]:
    """Return where the index of `path` may lie: beside it, and in the cache folder."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    places = [path.with_name(f".{path.name[:120]}.{kind}.npy")]
    with contextlib.suppress(RuntimeError):  # no home directory
        places.append(Path.home() / ".cache" / "vila-train" / f"{digest}.{kind}.npy")
    return places


def _read(place: Path, state: Index, columns: int) -> Index | None:
    """Return the index in a file, mapped into memory; None if there is none for data of this state."""
    try:
        open_regular_file(place)[0].close()
        values: Index = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    head = len(state)
    if values.dtype != np.int64 or values.ndim != 1 or len(values) < head or (len(values) - head) % columns:
        return None
    return values[head:].reshape(-1, columns) if np.array_equal(values[:head], state) else None


def _write(place: Path, state: Index, index: Index) -> None:
    if place.parent.name == "vila-train":
        make_folder(place.parent)
    with new_file(place) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate([state, index.ravel()]))
