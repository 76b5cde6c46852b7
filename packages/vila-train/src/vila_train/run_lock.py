"""A run's folder belongs to one process at a time."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vila_core.errors import ConfigError
from vila_core.new_file import cannot_write

LOCK = ".lock"


@contextmanager
def only_run(folder: Path) -> Generator[None]:
    """Keep other runs out of a folder for the block.

    A POSIX record lock: it ends with its process, however that ends, and is not inherited by loaders, which may outlive
    a killed run by seconds. File systems without locks are not guarded.

    Raises:
        ConfigError: another run is at work in the folder.
        OutputError: the folder cannot be written.
    """
    try:
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            raise ConfigError(
                f"Another run is at work in {folder}. Wait for it, or choose another folder with --out."
            ) from None
        except OSError:
            pass
        yield
