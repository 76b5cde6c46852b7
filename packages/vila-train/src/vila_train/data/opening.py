"""Opens a dataset: its files by their content, and the reader of its format."""

import glob
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vila_core.input_files import Content, open_input
from vila_train.data.detection import detect_format
from vila_train.data.entries import DatasetEntry, Format
from vila_train.data.formats.chat import ChatReader
from vila_train.data.formats.llava import LlavaReader
from vila_train.data.formats.questions import QuestionReader
from vila_train.data.media_files import MediaFolder
from vila_train.data.records.json_records import JsonRecords
from vila_train.data.sources import JoinedRecords, Reader, Records, RecordSource
from vila_train.errors import DatasetError

MAX_FILES = 1_000_000


def open_dataset(name: str, entry: DatasetEntry, base: Path) -> RecordSource:
    """Return the conversations of a dataset. Its samples are found (or their cached places read) on first use.

    Args:
        name: of the dataset, for the names of its samples.
        entry: what it is.
        base: the folder that its paths are relative to.

    Raises:
        DatasetError: a file is missing, or holds nothing that is known.
    """
    files = [file for pattern in entry.path for file in _find_files(base, pattern, name)]
    parts = [_open_file(file) for file in files]
    records = parts[0] if len(parts) == 1 else JoinedRecords(parts)
    format = entry.format or detect_format(records, files[0])
    folder = files[0].parent if entry.media is None else base / entry.media
    return RecordSource(name, records, _READERS[format](entry, MediaFolder(folder, entry.media_suffix)))


_READERS: dict[Format, Callable[[DatasetEntry, MediaFolder], Reader]] = {
    "llava": lambda entry, media: LlavaReader(media, entry.placement),
    "chat": lambda entry, media: ChatReader(media),
    "qa": lambda entry, media: QuestionReader(media),
}


def _find_files(base: Path, pattern: str, name: str) -> Sequence[Path]:
    """Return the files that a path or pattern names, sorted. Raises `DatasetError` if there are none."""
    path = base / Path(pattern).expanduser()
    if os.path.exists(path) or not glob.has_magic(pattern):
        return [path]
    found = sorted(glob.glob(str(path)))[:MAX_FILES]
    if not found:
        raise DatasetError(f"Dataset '{name}': no file matches '{path}'.")
    return [Path(file) for file in found]


def _open_file(path: Path) -> Records:
    with open_input(
        path,
        max_bytes=sys.maxsize,
        error=DatasetError,
        advice="Check the path of the dataset.",
        content=Content.ARCHIVE,
    ) as file:
        head = file.read(4096)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{") or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return JsonRecords(path)
    if not head.strip():
        raise DatasetError(f"'{path}' is empty. Expected samples as JSON or JSON Lines.")
    raise DatasetError(
        f"'{path}' is not a kind of file that can be read as training data. Expected JSON (a list), JSON Lines, "
        "webdataset (tar), parquet, or a folder that `datasets` saved."
    )
