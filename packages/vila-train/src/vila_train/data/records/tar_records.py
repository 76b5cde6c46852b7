"""Samples of a webdataset archive: members of an uncompressed tar file, found by their place.

Members in succession whose names are the same up to the first dot of the file name make one sample; the rest of the
name, in lower case, says what the member is: `000/17.jpg` and `000/17.seg.png` are "jpg" and "seg.png" of sample
`000/17`. Names without a dot, hidden files and `__names__` are left out. Source: github.com/webdataset/webdataset,
`tariterators.py` (`base_plus_ext`, `group_by_keys`).
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vila_core.errors import shown
from vila_core.input_files import Content
from vila_train.data.conversations import SampleError
from vila_train.data.records.spans import Index, IndexedFile, SpanFile
from vila_train.errors import DatasetError

MAX_MEMBER_BYTES = 2 * 1024**3
"""Of one image, video or text; media have limits of their own when they are decoded."""
MAX_MEMBERS = 10_000
"""Of one sample."""
_SUFFIX_BYTES = 32
_CHUNK_BYTES = 1024 * 1024
_COLUMNS = 3 + _SUFFIX_BYTES // 8
"""Of the index: number of the sample, start and length of the member, and its suffix in 8 bytes each."""
_DAMAGE = "!damage"
"""Stands for the end of a damaged archive, as a last sample that cannot be read, so that the damage is counted."""
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class TarSample(Mapping[str, bytes]):
    """The members of a sample by suffix, read on access.

    Attributes:
        file: the archive.
        members: start and length of each.
    """

    file: SpanFile
    members: Mapping[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __getitem__(self, suffix: str) -> bytes:
        """Raises `SampleError` if the member cannot be read."""
        start, length = self.members[suffix]
        where = f"member .{suffix} of '{self.file.path.name}' (byte {start:,})"
        return self.file.read_span(start, length, MAX_MEMBER_BYTES, where)


class TarRecords(IndexedFile):
    """The samples of an archive. The index holds its members in their order.

    Args:
        path: of the file, which is indexed on first use: its headers are read once.
    """

    KIND, COLUMNS, CONTENT = "members", _COLUMNS, Content.ARCHIVE
    HINT = ": no members with names such as '17.jpg'."

    def __len__(self) -> int:
        return int(self.index[-1, 0]) + 1

    def __getitem__(self, number: int) -> TarSample:
        """Return sample `number`. Raises `SampleError` for the damaged end of an archive, and for repeated members."""
        first, last = np.searchsorted(self.index[:, 0], [number, number + 1])
        if last - first > MAX_MEMBERS:
            raise SampleError(f"it has {last - first:,} members; the limit is {MAX_MEMBERS:,}.", "too large")
        members: dict[str, tuple[int, int]] = {}
        for row in self.index[first:last]:
            suffix = row[3:].tobytes().rstrip(b"\0").decode("utf-8", "replace")
            start, length = int(row[1]), int(row[2])
            if suffix == _DAMAGE:
                raise SampleError(
                    f"'{self.path.name}' is damaged or not complete at byte {start:,}, or several archives in one "
                    f"file: its {number:,} samples before are used. Download or write it again.",
                    "damaged archive",
                )
            if suffix in members:
                raise SampleError(f"'{self.path.name}' holds two members .{suffix} for it.", "damaged archive")
            members[suffix] = start, length
        return TarSample(self._file, members)

    def _build_index(self) -> Index:
        rows: list[bytes] = []
        key: str | None = None
        number = -1
        for name, start, length in self._members():
            found = None if name.startswith("__") and name.endswith("__") else _NAME.fullmatch(name)
            if name == _DAMAGE:
                number, suffix = number + 1, _DAMAGE
            elif found is None:
                continue
            else:
                if found[1] != key:
                    key, number = found[1], number + 1
                suffix = found[2].lower()
            kept = suffix.encode("utf-8", "replace")[:_SUFFIX_BYTES].ljust(_SUFFIX_BYTES, b"\0")
            rows.append(np.array([number, start, length], dtype=np.int64).tobytes() + kept)
        return np.frombuffer(b"".join(rows), dtype=np.int64).reshape(-1, _COLUMNS)

    def _chunks(self, start: int) -> Iterator[bytes]:
        while chunk := self._file.read(start, _CHUNK_BYTES):
            yield chunk
            start += len(chunk)

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, start and length of the regular files, and `_DAMAGE` where the archive breaks off."""
        place = 0
        try:
            file = self._file.file
            file.seek(0, 2)
            size = file.tell()
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - they would take gigabytes
                    place = member.offset
                    end = member.offset_data + member.size
                    if member.size < 0 or (member.isreg() and end > size):
                        raise tarfile.ReadError("unexpected end of data")
                    if member.isreg() and not member.issparse():
                        yield member.name, member.offset_data, member.size
                    place = max(place, archive.offset)
                # tarfile ends quietly at a damaged header; a complete archive has a block of zeros there.
                # What follows it would be left out silently, such as the second of two archives written into one file.
                if size <= archive.offset or any(map(any, self._chunks(archive.offset))):
                    yield _DAMAGE, archive.offset, 0
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            if not place:
                raise DatasetError(
                    f"'{self.path}' is not a tar archive that can be read: {shown(str(error))}."
                ) from None
            yield _DAMAGE, place, 0
