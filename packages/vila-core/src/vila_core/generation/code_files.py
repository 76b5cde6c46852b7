"""Codes of images in files: `.npz` with `codes` `[N, h, w, D]` and `codebook_size`. Files of others are not trusted."""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vila_core.errors import MediaError, shown
from vila_core.input_files import Content, read_input
from vila_core.new_file import new_file

MAX_FILE_BYTES = 64 * 2**20
MAX_CODES = 2**24
"""16,384 images of VILA-U: 16 x 16 positions with 4 codes."""
_MAX_HEADER = 4096
_ADVICE = "Write such a file with `vila tokenize-image`."


def write_codes(path: Path, codes: NDArray[np.integer], codebook_size: int) -> None:
    """Write codes `[N, h, w, D]` to `path`, completely or not at all. Raises `OutputError`."""
    small = np.uint16 if codebook_size <= 2**16 else np.uint32
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, codes=codes.astype(small), codebook_size=np.int64(codebook_size))


def read_codes(path: str | Path) -> tuple[NDArray[np.int64], int | None]:
    """Return the codes in a file, and the size of the codebook that they are from, if the file says.

    Nothing is unpickled, and no more memory is taken than `MAX_CODES` numbers need.

    Raises:
        MediaError: the file is missing, too large, damaged, or holds something else.
    """
    path = Path(path)
    data = read_input(path, max_bytes=MAX_FILE_BYTES, error=MediaError, advice=_ADVICE, content=Content.ANY)
    if data.startswith(b"\x93NUMPY"):
        return _read_array(io.BytesIO(data), path, "codes").astype(np.int64), None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "codes.npy" not in names:
                raise _refusal(path, f"it has no 'codes', but {shown([name[:50] for name in names[:5]])}")
            codes = _read_member(archive, "codes.npy", path)
            size = _read_member(archive, "codebook_size.npy", path) if "codebook_size.npy" in names else None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise _refusal(path, f"it is not a NumPy archive: {error}") from None
    if size is not None and (size.size != 1 or not 0 < int(size.reshape(-1)[0]) <= 2**31):
        raise _refusal(path, f"its 'codebook_size' is {shown(size.tolist() if size.size < 10 else list(size.shape))}")
    return codes.astype(np.int64), None if size is None else int(size.reshape(-1)[0])


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[np.generic]:
    with archive.open(name) as member:
        return _read_array(member, path, name.removesuffix(".npy"))


def _read_array(file: IO[bytes], path: Path, name: str) -> NDArray[np.generic]:
    """Read an array of whole numbers whose header is checked first."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise _refusal(path, f"'{name}' has the unknown version {version}")
        shape, by_columns, dtype = read_header[version](file, max_header_size=_MAX_HEADER)
    except MediaError:
        raise
    except Exception as error:  # noqa: BLE001 - NumPy parses the header as Python, and raises whatever that raises
        raise _refusal(path, f"the header of '{name}' is damaged: {str(error)[:200]}") from None
    if dtype.hasobject or dtype.kind not in "iu":
        raise _refusal(path, f"'{name}' holds {shown(str(dtype))}; expected whole numbers")
    # NumPy's header may have True as a size, and its arrays no large sizes, not even beside a 0.
    are_sizes = len(shape) <= 4 and all(type(size) is int and size >= 0 for size in shape)
    if not are_sizes or math.prod(max(size, 1) for size in shape) > MAX_CODES:
        raise _refusal(path, f"'{name}' has the shape {shown(list(shape[:8]))}; the limit is {MAX_CODES:,} numbers")
    count = math.prod(shape)
    raw = file.read(count * dtype.itemsize)
    if len(raw) != count * dtype.itemsize:
        raise _refusal(path, f"'{name}' is cut off")
    values = np.frombuffer(raw, dtype=dtype)
    if dtype.kind == "u" and dtype.itemsize == 8 and count and int(values.max()) >= 2**63:
        raise _refusal(path, f"'{name}' holds numbers beyond every codebook")
    return values.reshape(shape, order="F" if by_columns else "C")


def _refusal(path: Path, reason: str) -> MediaError:
    return MediaError(f"{path} holds no codes of images: {reason}. {_ADVICE}")
