"""Writing a folder completely or not at all: it gets its name only when everything in it is written."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vila_core.errors import CheckpointError


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
        free = shutil.disk_usage(path.parent).free
        if free < needed_bytes:
            raise _disk_full(path, f"{needed_bytes:,} bytes are needed, {free:,} are free")
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.rmdir()  # empty, as checked above
        temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(path, error) from None
    except BaseException:  # an interrupted run leaves nothing behind either
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_new(path: Path) -> None:
    """Raise `CheckpointError` unless the folder `path` can be created. Call it before a long computation."""
    try:
        is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:  # an impossible name, or a folder without read permission
        raise CheckpointError(f"{path} cannot be written: {error.strerror}. Choose another folder.") from None
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


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path, "the disk is full")
    return CheckpointError(f"{path} cannot be written: {error.strerror or error}. No part of it was left behind.")


def _disk_full(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was not written: {why}. Free space or choose another disk; no part of it was left behind."
    )
