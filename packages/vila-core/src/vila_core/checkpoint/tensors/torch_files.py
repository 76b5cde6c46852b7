"""torch's files, a zip archive or (before torch 1.6) a sequence of pickles: where the pickle and the storages lie.

Zip layout: NAME/data.pkl, NAME/byteorder, NAME/version and NAME/data/KEY for each storage, all stored uncompressed.
Sources: torch/serialization.py; https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import mmap
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from vila_core.checkpoint.tensors.headers import MAX_WEIGHT_FILE_BYTES
from vila_core.checkpoint.tensors.pickle_machine import (
    DamagedPickleError,
    Storage,
    StoredTensor,
    UnsafePickleError,
    read_pickle,
)
from vila_core.errors import CheckpointError
from vila_core.input_files import Content, open_input

MAX_PICKLE_BYTES = 16 * 1024 * 1024
"""The pickle holds names and shapes, about 100 bytes per tensor."""
MAX_MEMBERS = 100_000
_SMALL_MEMBER_BYTES = 1000

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")


@dataclass(frozen=True)
class TorchFile:
    """What a file holds: `content` as `read_pickle` returns it, and where each storage begins, in bytes, by key."""

    content: object
    starts: Mapping[str, int]


def read_torch_file(path: Path) -> TorchFile:
    """Read the pickle of the file at `path`, but no tensors. Nothing in it is executed.

    Raises:
        CheckpointError: the file is missing or damaged, compressed, or contains anything but tensors and plain values.
    """
    advice = "Download the checkpoint again."
    try:
        with open_input(path, max_bytes=MAX_WEIGHT_FILE_BYTES, advice=advice, content=Content.ARCHIVE) as file:
            data = _map(file)
            return _read_zip(file, data) if _is_at(data, 0, b"PK\x03\x04") else _read_sequence(data)
    except UnsafePickleError as error:
        raise CheckpointError(
            f"{path} was refused: it holds more than tensors, and pickles can run code ({error}). "
            "Nothing of it was executed. Ask its author for a safetensors file."
        ) from None
    except (
        DamagedPickleError,
        zipfile.BadZipFile,
        NotImplementedError,  # of an unknown version
        struct.error,
        OSError,
        ValueError,
    ) as error:
        raise CheckpointError(f"{path} is damaged or not a torch file: {error}. Download it again.") from None


def _map(file: BinaryIO) -> memoryview:
    if not os.fstat(file.fileno()).st_size:
        raise DamagedPickleError("it is empty")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_zip(file: BinaryIO, data: memoryview) -> TorchFile:
    _check_directory(data)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    by_name = {member.filename: member for member in members}
    if len(by_name) < len(members):
        raise DamagedPickleError("two members of its archive have the same name")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise DamagedPickleError(f"its member '{member.filename}' is compressed, which torch's files never are")
    roots = [name.removesuffix("/data.pkl") for name in by_name if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise DamagedPickleError("its archive has no 'data.pkl' in one folder")
    root = roots[0]
    if f"{root}/constants.pkl" in by_name:
        raise UnsafePickleError("it is a TorchScript program")
    if sum(member.file_size for member in members) > len(data):
        raise DamagedPickleError("the members of its archive overlap")
    _check_small_members(data, root, by_name)
    pickle = by_name[f"{root}/data.pkl"]
    if pickle.file_size > MAX_PICKLE_BYTES:
        raise DamagedPickleError(f"its pickle has {pickle.file_size:,} bytes, too many for names and shapes")
    content, _ = read_pickle(_member(data, pickle))
    starts: dict[str, int] = {}
    for storage in find_storages(content):
        member = by_name.get(f"{root}/data/{storage.key}")
        if member is None or member.file_size < storage.nbytes:
            raise DamagedPickleError(f"its storage '{storage.key}' is missing or shorter than its tensors")
        starts[storage.key] = _start(data, member)
    return TorchFile(content, starts)


def _check_directory(data: memoryview) -> None:
    """Raise unless the archive's directory is plain: no comment, nothing before the archive, not too many members.

    Readers find the directory in different ways; in a plain archive all find the same.
    """
    end = len(data) - _END_OF_DIRECTORY.size
    if end < 0 or not _is_at(data, end, b"PK\x05\x06"):
        raise DamagedPickleError("its archive has no directory at its end: the file is truncated")
    _, _, _, _, count, size, start, _ = cast(tuple[int, ...], _END_OF_DIRECTORY.unpack_from(data, end))
    directory_end, locator = end, end - _ZIP64_LOCATOR.size
    if locator >= 0 and _is_at(data, locator, b"PK\x06\x07"):
        _, _, end64, _ = cast(tuple[int, ...], _ZIP64_LOCATOR.unpack_from(data, locator))
        if end64 + _ZIP64_END.size != locator or not _is_at(data, end64, b"PK\x06\x06"):
            raise DamagedPickleError("its archive has a damaged directory")
        *_, count, size, start = cast(tuple[int, ...], _ZIP64_END.unpack_from(data, end64))
        directory_end = end64
    if count > MAX_MEMBERS:
        raise DamagedPickleError(f"its archive has {count:,} members, more than {MAX_MEMBERS:,}")
    if start + size != directory_end or size > count * 1000:
        raise DamagedPickleError("its archive has a damaged directory")


def _check_small_members(data: memoryview, root: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name in ("version", ".format_version", "byteorder", ".storage_alignment", ".data/serialization_id"):
        member = members.get(f"{root}/{name}")
        if member is not None and member.file_size > _SMALL_MEMBER_BYTES:
            raise DamagedPickleError(f"its member '{name}' has {member.file_size:,} bytes, too many for a few words")
    order = members.get(f"{root}/byteorder")
    if order is not None and bytes(_member(data, order)) != b"little":
        raise DamagedPickleError(f"its byte order is {bytes(_member(data, order))!r}, not b'little'")


def _member(data: memoryview, member: zipfile.ZipInfo) -> memoryview:
    start = _start(data, member)
    return data[start : start + member.file_size]


def _start(data: memoryview, member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin, behind its local header."""
    header = member.header_offset
    if header < 0 or not _is_at(data, header, b"PK\x03\x04"):
        raise DamagedPickleError(f"its member '{member.filename}' has no header")
    name_length, extra_length = struct.unpack_from("<2H", data, header + 26)
    start = header + 30 + name_length + extra_length
    if start + member.file_size > len(data):
        raise DamagedPickleError(f"its member '{member.filename}' leaves the file")
    return start


def _is_at(data: memoryview, position: int, signature: bytes) -> bool:
    return bytes(data[position : position + len(signature)]) == signature


def _read_sequence(data: memoryview) -> TorchFile:
    """Read the old layout: magic number, version, system, content and storage keys, five pickles, then the storages."""
    head = data[:MAX_PICKLE_BYTES]
    magic, position = read_pickle(head)
    if magic != _LEGACY_MAGIC:
        raise DamagedPickleError("it does not begin with torch's magic number")
    version, position = read_pickle(head, position)
    if version != _LEGACY_PROTOCOL:
        raise DamagedPickleError("it has an unknown version")
    system, position = read_pickle(head, position)
    if not isinstance(system, dict) or cast(dict[object, object], system).get("little_endian") is not True:
        raise DamagedPickleError("its byte order is not little-endian")
    content, position = read_pickle(head, position)
    keys, position = read_pickle(head, position)
    storages = {storage.key: storage for storage in find_storages(content)}
    starts: dict[str, int] = {}
    for key in cast(list[object], keys) if isinstance(keys, list) else []:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise DamagedPickleError("it lists a storage that no tensor uses")
        starts[storage.key] = position + 8
        position += 8 + storage.nbytes
        if position > len(data):
            raise DamagedPickleError("it ends inside its tensors: the file is truncated")
    if starts.keys() != storages.keys():
        raise DamagedPickleError("a storage of its tensors is missing")
    return TorchFile(content, starts)


def find_storages(content: object) -> Iterator[Storage]:
    """Yield the storages of all tensors in `content`, once for each key. Raises `DamagedPickleError` on deep nests."""
    found: dict[str, Storage] = {}
    level, seen = [content], set[int]()
    for _ in range(20):
        inner: list[object] = []
        for item in level:
            if isinstance(item, StoredTensor):
                other = found.setdefault(item.storage.key, item.storage)
                if other.nbytes != item.storage.nbytes:
                    raise DamagedPickleError(f"its storage '{other.key}' has two sizes")
            elif isinstance(item, dict | list | tuple) and id(cast(object, item)) not in seen:
                seen.add(id(cast(object, item)))  # the same list a thousand times is one list
                inner += cast(dict[object, object], item).values() if isinstance(item, dict) else item
        if not inner:
            yield from found.values()
            return
        level = inner
    raise DamagedPickleError("it nests too deeply")
