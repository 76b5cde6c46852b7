"""State files of a checkpoint: the progress of the run, and checksums that detect damage."""

import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vila_core.checkpoint.json_files import read_json
from vila_core.config import Config
from vila_core.errors import CheckpointError, first_problem
from vila_core.input_files import open_regular_file
from vila_core.new_file import write_file
from vila_train.number_types import NonNegativeInt
from vila_train.packing.lanes import LaneState
from vila_train.plan import Plan

STATE = "state.json"
_CHUNK = 1 << 24


class Progress(Config):
    """The state of a run besides tensors, for resuming.

    Attributes:
        step: optimizer steps done.
        lanes: where each lane stands that has given a row.
        skipped: samples skipped so far, by reason.
        truncated: samples so far that lost their end.
        plan: of the run, should its own file be lost.
        base: fingerprints of the files of the model that the run started from; None in earlier checkpoints.
        files: CRC-32 of each file of the checkpoint.
        checksum: CRC-32 of all the above.
    """

    step: NonNegativeInt
    lanes: Mapping[NonNegativeInt, LaneState]
    skipped: Mapping[str, NonNegativeInt]
    truncated: NonNegativeInt = 0
    plan: Plan | None = None
    base: Mapping[str, str] | None = None
    files: Mapping[str, int] = {}
    checksum: int | None = None

    def own_checksum(self) -> int:
        """Return the CRC-32 of everything but `checksum`, and of what earlier versions did not have if it is there."""
        left_out: dict[str, Any] = {"checksum": True}
        if self.base is None:
            left_out["base"] = True
        if self.plan is not None and self.plan.datasets is None:
            left_out["plan"] = {"datasets"}
        return zlib.crc32(self.model_dump_json(exclude=left_out).encode())


def folder_name(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08}"


def step_folders(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints in `folder`, oldest first, intact or not."""
    return sorted(path for path in folder.glob("step-" + "[0-9]" * 8) if path.is_dir())


def read_progress(folder: Path) -> Progress:
    """Return the state of the checkpoint in `folder`. Raises `CheckpointError` if it is missing or damaged."""
    try:
        progress = Progress.model_validate(read_json(folder / STATE))
    except ValidationError as error:
        raise CheckpointError(f"{folder / STATE} is damaged: {first_problem(error)}.") from None
    if progress.checksum not in (None, progress.own_checksum()):
        raise CheckpointError(f"{folder / STATE} is damaged: its checksum differs.")
    if folder.name != folder_name(progress.step):
        raise CheckpointError(f"{folder} is not what its name says: it holds step {progress.step:,}.")
    return progress


def write_progress(folder: Path, progress: Progress, files: Mapping[str, int]) -> None:
    """Write the state of the checkpoint in `folder`, whose files have these checksums.

    Raises `OutputError` or `OSError`.
    """
    complete = progress.model_copy(update={"files": dict(sorted(files.items()))})
    complete = complete.model_copy(update={"checksum": complete.own_checksum()})
    write_file(folder / STATE, complete.model_dump_json(indent=1) + "\n")
    flush(folder / STATE)


def file_damage(file: Path, checksum: int) -> str | None:
    """Return what is wrong with a file that had this checksum; None if nothing is."""
    try:
        found = file_checksum(file)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}."
    return None if found == checksum else f"{file} is damaged: its checksum differs."


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk. Raises `OSError`."""
    if sys.platform == "win32":  # which flushes only what is open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_checksum(file: Path) -> int:
    """Return the CRC-32 of a file. Raises `OSError`, also for a pipe, which is not waited for."""
    value = 0
    with open_regular_file(file)[0] as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
