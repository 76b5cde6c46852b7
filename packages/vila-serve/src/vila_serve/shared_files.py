"""Files without a name, which two processes share by their descriptor: in memory on Linux, else on disk."""

import mmap
import os
import sys
import tempfile
from collections.abc import Iterable

_IS_LINUX = sys.platform == "linux"


def write_file(pieces: Iterable[bytes | memoryview]) -> int:
    """Return the descriptor of a new file with this content. On Linux, nobody can change it any more.

    Raises:
        OSError: there is no space.
    """
    if _IS_LINUX:
        descriptor = os.memfd_create("vila-media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[os.write(descriptor, left) :]
        _seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(descriptor: int) -> mmap.mmap | bytes:
    """Return the content of a file of another process, without a copy on Linux. The caller closes the descriptor.

    Raises:
        ValueError: the file is empty, or could still be changed: a mapping of a file that shrinks kills the process.
    """
    size = os.fstat(descriptor).st_size
    if not size:
        raise ValueError("the file is empty")
    if not _IS_LINUX:
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()
    if not _is_sealed(descriptor):
        raise ValueError("the file is not sealed")
    return mmap.mmap(descriptor, size, prot=mmap.PROT_READ)


def _seal(descriptor: int) -> None:
    if _IS_LINUX:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())


def _is_sealed(descriptor: int) -> bool:
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _seals() == _seals()
    except OSError:  # not a file that can be sealed
        return False


def _seals() -> int:
    import fcntl

    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
