"""Unpacking a dataset's archives: within bounds of size and number, and only into their own folder."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from vila_core.errors import printable
from vila_core.input_files import open_regular_file
from vila_eval.errors import DataError

SLACK_BYTES, RATIO = 256 * 2**20, 32
"""An archive may unpack to `SLACK_BYTES` and `RATIO` times its own size: media hardly compress."""

SLACK_MEMBERS, BYTES_PER_MEMBER, MOST_MEMBERS = 10_000, 256, 300_000
"""An archive may hold `SLACK_MEMBERS` and one member per `BYTES_PER_MEMBER` of its size, at most `MOST_MEMBERS`."""

MOST_METADATA_BYTES = 64 * 2**20
"""Largest directory of a zip archive, and largest single read of a tar archive's headers."""

_ZIP_END, _ZIP64_END, _ZIP64_LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_DECOMPRESSORS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


def unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack zip and tar archives (joining parts) into the new folder `target`, completely or not at all.

    Raises:
        DataError: an archive is damaged, encrypted, of an unknown method, too large when unpacked, or leads out of the
            folder; or the folder cannot be written.
    """
    with written_whole(target) as unfinished:
        for name, parts in _joined(archives).items():
            try:
                with _concatenated(parts, unfinished) as file:
                    _unpack(file, name, sum(part.stat().st_size for part in parts), unfinished)
            except DataError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                    raise _cannot_write(target, error) from error
                raise DataError(f"The archive '{name}' cannot be unpacked: {_describe(error)} {_AGAIN}") from error
            except Exception as error:  # damaged archives make zipfile and tarfile raise almost anything
                raise DataError(f"The archive '{name}' cannot be unpacked: {_describe(error)} {_AGAIN}") from error


_AGAIN = "Delete it and fetch it again."
_YOURSELF = "If that is right, unpack it yourself and delete the archive."


def _describe(error: Exception) -> str:
    text = printable(str(error))[:200]
    return f"{text or type(error).__name__}."


def _unpack(file: BinaryIO, name: str, size: int, folder: Path) -> None:
    head = file.read(64)
    file.seek(0)
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"The archive '{name}' is a Git LFS pointer, not the archive. Run: git lfs pull")
    bounds = _Bounds(name, size, folder)
    if ".zip" in Path(name).name:
        _unpack_zip(file, bounds, folder)
    else:
        _unpack_tar(file, head, bounds, folder)


class _Bounds:
    """Counts what an archive unpacks to, and refuses more than its size and the disk allow."""

    def __init__(self, name: str, size: int, folder: Path):
        self.name = name
        self.most_bytes = SLACK_BYTES + RATIO * size
        self.most_members = min(MOST_MEMBERS, SLACK_MEMBERS + size // BYTES_PER_MEMBER)
        self._free = shutil.disk_usage(folder).free
        self._members = self._bytes = 0

    def add(self, member_bytes: int) -> None:
        self._members += 1
        self._bytes += member_bytes
        if self._members > self.most_members:
            raise DataError(f"The archive '{self.name}' has more than {self.most_members:,} members. {_YOURSELF}")
        self.require(self._bytes)

    def require(self, unpacked: int) -> None:
        """Raise `DataError` if `unpacked` bytes are too many."""
        if unpacked > self.most_bytes:
            raise DataError(
                f"The archive '{self.name}' unpacks to more than {self.most_bytes:,} bytes, {RATIO} times its size. "
                f"{_YOURSELF}"
            )
        if unpacked > self._free:
            raise DataError(f"The archive '{self.name}' unpacks to more than the {self._free:,} bytes that are free.")


def _unpack_zip(file: BinaryIO, bounds: _Bounds, folder: Path) -> None:
    if (size := _directory_bytes(file)) > MOST_METADATA_BYTES:
        raise DataError(f"The archive '{bounds.name}' has a directory of {size:,} bytes. {_YOURSELF}")
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise DataError(f"The archive '{bounds.name}' is encrypted. Unpack it yourself and delete it.")
            bounds.add(member.file_size)
        archive.extractall(folder)  # drops absolute paths and "..", and reads no more than the stated sizes


def _directory_bytes(file: BinaryIO) -> int:
    """Return the stated size of a zip archive's directory, which `zipfile` reads at once; 0 if there is none."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - 65_600)
    file.seek(start)
    tail = file.read()
    file.seek(0)
    position = tail.rfind(_ZIP_END)
    if position < 0:
        return 0
    size = int.from_bytes(tail[position + 12 : position + 16], "little")
    locator = position - 20
    if locator >= 0 and tail[locator : locator + 4] == _ZIP64_LOCATOR:
        record = tail.rfind(_ZIP64_END, 0, locator)
        size = max(size if size != 0xFFFFFFFF else 0, int.from_bytes(tail[record + 40 : record + 48], "little"))
    return size


def _unpack_tar(file: BinaryIO, head: bytes, bounds: _Bounds, folder: Path) -> None:
    opener = next((opener for magic, opener in _DECOMPRESSORS if head.startswith(magic)), None)
    with (
        file if opener is None else opener(file, "rb") as content,
        tarfile.open(fileobj=_BoundedReader(cast("IO[bytes]", content), bounds), mode="r:") as archive,
    ):
        for member in archive:
            bounds.add(max(0, member.size) if member.isreg() else 0)
            archive.extract(member, folder, filter="data")  # refuses devices, and paths and links that lead out


class _BoundedReader(io.RawIOBase):
    """A file whose position and single reads are bounded: a compressed tar may hold headers without end."""

    def __init__(self, file: IO[bytes], bounds: _Bounds):
        super().__init__()
        self._file, self._bounds = file, bounds

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= MOST_METADATA_BYTES:
            raise DataError(f"The archive '{self._bounds.name}' has a header of {size:,} bytes.")
        content = self._file.read(size)
        self._require(self._file.tell())
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET:
            self._require(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _require(self, position: int) -> None:
        # Headers take 1 KB per member, beside the members' bytes.
        self._bounds.require(position - 1024 * self._bounds.most_members)


def _joined(archives: Sequence[Path]) -> dict[str, list[Path]]:
    """Group the parts of split archives: "v.tar.part.aa", "v.tar.part.ab" -> "v.tar"."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(archives):
        stem = path.name.partition(".part")[0]
        groups.setdefault(str(path.with_name(stem)), []).append(path)
    return groups


@contextmanager
def _concatenated(parts: Sequence[Path], scratch: Path) -> Generator[BinaryIO]:
    if len(parts) == 1:
        with open_regular_file(parts[0])[0] as file:
            yield file
        return
    joined = scratch / ".joined"
    with joined.open("w+b") as file:
        for part in parts:
            with open_regular_file(part)[0] as piece:
                shutil.copyfileobj(piece, file)
        file.seek(0)
        yield file
    joined.unlink()


@contextmanager
def written_whole(folder: Path) -> Generator[Path]:
    """Yield a temporary folder that is renamed to `folder` on success and removed on failure. Raises `DataError`."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield unfinished
        if folder.exists():  # another process was faster
            shutil.rmtree(unfinished)
        else:
            unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _cannot_write(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"The cache folder '{folder}' cannot be written: {error.strerror}. Free some space, or name another cache in "
        "VILA_EVAL_CACHE."
    )
