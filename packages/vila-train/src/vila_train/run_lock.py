"""A run's folder belongs to one process at a time."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vila_core.errors import ConfigError
from vila_core.new_file import leftovers, open_log, remove_leftovers

LOCK = ".lock"


@contextmanager
def only_run(folder: Path) -> Generator[None]:
    """Keep other runs out of a folder for the block, and remove the temporary files that killed ones left there.

    A POSIX record lock: it ends with its process, however that ends, and is not inherited by loaders, which may outlive
    a killed run by seconds. File systems without locks are not guarded.

    Raises:
        ConfigError: another run is at work in the folder.
        OutputError: the folder cannot be written.
    """
    with open_log(folder / LOCK) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            raise ConfigError(
                f"Another run is at work in {folder}. Wait for it, or choose another folder with --out."
            ) from None
        except OSError:
            pass
        remove_leftovers(folder)
        yield


def is_unused(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a run leaves that is killed before its first file."""
    return not {*folder.iterdir()} - {folder / LOCK, *leftovers(folder)}


def lock_number(folder: Path) -> int | None:
    """Return a number that the folder's lock keeps as long as it is held; None if the folder was deleted or moved."""
    try:
        return (folder / LOCK).stat().st_ino
    except OSError:
        return None
