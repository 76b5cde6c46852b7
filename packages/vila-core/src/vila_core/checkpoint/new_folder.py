"""Writing a folder completely or not at all: it gets its name only when everything in it is written."""

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vila_core.errors import CheckpointError
from vila_core.new_file import umask

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


@contextmanager
def new_folder(path: Path, needed_bytes: int = 0) -> Generator[Path]:
    """Yield a temporary folder beside `path`, renamed to `path` if the block succeeds and deleted if it fails.

    Raises:
        CheckpointError: `path` exists and is not an empty folder, or the disk is full or not writable.
    """
    path = path.expanduser().absolute()
    require_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        free = shutil.disk_usage(path.parent).free
        if free < needed_bytes:
            raise _disk_full(path, f"{needed_bytes:,} bytes are needed, {free:,} are free")
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _cannot_write(path, error) from None
    lock = _lock(temporary)
    try:
        yield temporary
        temporary.chmod(0o777 & ~umask())
        if path.exists():
            path.rmdir()  # empty, as checked above
        temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(path, error) from None
    except BaseException:  # an interrupted run leaves nothing behind either
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def remove_abandoned(path: Path) -> None:
    """Remove what killed runs left beside `path`: temporary folders that no process holds."""
    for folder in path.parent.glob(f".{glob.escape(path.name[:100])}.????????.part"):  # as mkdtemp names them
        lock = _lock(folder) if folder.is_dir() and not folder.is_symlink() else None
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Hold the folder until the descriptor is closed or the process ends. None if another process holds it."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def require_new(path: Path) -> None:
    """Raise `CheckpointError` unless the folder `path` can be created. Call it before a long computation."""
    try:
        is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except (OSError, ValueError) as error:  # an impossible name, or a folder without read permission
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be written: {reason}. Choose another folder.") from None
    if is_taken:
        raise CheckpointError(f"{path} exists and is not empty. Choose another folder, or remove it first.")
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        problem = "not writable" if nearest.is_dir() else "a file"
        raise CheckpointError(f"{path} cannot be written: {nearest} is {problem}. Choose another folder.")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write `value` as indented JSON with sorted keys. NaN and infinities are a `ValueError`."""
    path.write_text(
        json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _cannot_write(path: Path, error: OSError | ValueError) -> CheckpointError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path, "the disk is full")
    reason = error.strerror or error if isinstance(error, OSError) else error
    return CheckpointError(f"{path} cannot be written: {reason}. No part of it was left behind.")


def _disk_full(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was not written: {why}. Free space or choose another disk; no part of it was left behind."
    )
