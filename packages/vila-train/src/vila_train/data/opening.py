"""Opens a dataset: its files by their content, and the reader of its format."""

import glob
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vila_core.errors import listed
from vila_core.input_files import Content, open_input
from vila_train.data.detection import detect_format
from vila_train.data.entries import DatasetEntry, Format
from vila_train.data.formats.captions import WebdatasetReader
from vila_train.data.formats.chat import ChatReader
from vila_train.data.formats.documents import Mmc4Reader
from vila_train.data.formats.instructions import FlanReader, M3itReader
from vila_train.data.formats.llava import LlavaReader
from vila_train.data.formats.questions import QuestionReader, TextsReader
from vila_train.data.formats.videos import VideoReader
from vila_train.data.media_files import MediaFolder
from vila_train.data.records.json_records import JsonRecords
from vila_train.data.records.tables import TableRecords
from vila_train.data.records.tar_records import TarRecords
from vila_train.data.sources import JoinedSource, Reader, Records, RecordSource, joined
from vila_train.errors import DatasetError

MAX_FILES = 1_000_000
_EXPECTED = "Expected JSON (a list), JSON Lines, webdataset (tar), parquet, or a folder that `datasets` saved."
_SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")


def open_dataset(
    name: str, entry: DatasetEntry, base: Path, build: Callable[[Sequence[Records]], None] = lambda files: None
) -> RecordSource | JoinedSource:
    """Return the conversations of a dataset. Its samples are found (or their cached places read) on first use.

    Args:
        name: of the dataset, for the names of its samples.
        entry: what it is.
        base: the folder that its paths are relative to.
        build: called with the records of its files before they are looked at, to index them.

    Raises:
        DatasetError: a file is missing, or holds nothing that is known.
    """
    if entry.media is not None and not os.path.isdir(_media_folder(base, entry.media)):
        raise DatasetError(
            f"the media folder '{_media_folder(base, entry.media)}' is missing. Check 'media' in the registry."
        )
    files = [file for pattern in entry.path for file in _find_files(base, pattern, name, entry.split)]
    kinds = {file: kind_of_file(file) for file in files}
    if len(set(kinds.values())) > 1:
        raise DatasetError(f"Dataset '{name}' has files of several kinds: {listed(sorted(set(kinds.values())))}.")
    kind = kinds[files[0]]
    if kind == "table":
        return _source(name, entry, base, files, TableRecords(files, entry.split, entry.columns))
    if entry.columns:
        raise DatasetError("'columns' renames the columns of tables, and its files are no tables. Remove it.")
    make = TarRecords if kind == "tar" else JsonRecords
    records = {file: make(file) for file in files}
    build([*records.values()])
    groups: dict[Path, list[Path]] = {}
    for file in files:  # media lie beside each file, unless there is a folder for all
        groups.setdefault(file.parent if entry.media is None else base, []).append(file)
    sources = [_source(name, entry, base, some, joined([records[file] for file in some])) for some in groups.values()]
    return sources[0] if len(sources) == 1 else JoinedSource(name, sources)


def _source(name: str, entry: DatasetEntry, base: Path, files: Sequence[Path], records: Records) -> RecordSource:
    """Return the conversations of files whose media lie in one folder."""
    is_archive = kind_of_file(files[0]) == "tar"
    format = entry.format or ("webdataset" if is_archive else detect_format(records, files[0]))
    if (format == "webdataset") != is_archive:
        raise DatasetError(f"Dataset '{name}': the format '{format}' does not fit '{files[0]}'. {_EXPECTED}")
    folder = (
        (files[0] if files[0].is_dir() else files[0].parent)
        if entry.media is None
        else _media_folder(base, entry.media)
    )
    reader = _READERS[format](entry, MediaFolder(folder, entry.media_suffix))
    is_document = format == "mmc4" or (format == "webdataset" and entry.learn == "document")
    return RecordSource(name, records, reader, is_document)


_READERS: dict[Format, Callable[[DatasetEntry, MediaFolder], Reader]] = {
    "llava": lambda entry, media: LlavaReader(media, entry.placement),
    "chat": lambda entry, media: ChatReader(media),
    "qa": lambda entry, media: QuestionReader(media),
    "texts": lambda entry, media: TextsReader(media),
    "mmc4": lambda entry, media: Mmc4Reader(media, entry.max_images, entry.choose_images),
    "webdataset": lambda entry, media: WebdatasetReader(entry.learn, entry.placement),
    "m3it": lambda entry, media: M3itReader(media),
    "flan": lambda entry, media: FlanReader(),
    "video": lambda entry, media: VideoReader(media),
}


def _media_folder(base: Path, media: str) -> Path:
    return base / Path(media).expanduser()


def kind_of_file(path: Path) -> str:
    """Return "json", "tar" or "table". Raises `DatasetError` for anything else."""
    if os.path.isdir(path):
        return "table"
    advice = "Check the path of the dataset."
    with open_input(path, max_bytes=sys.maxsize, error=DatasetError, advice=advice, content=Content.ARCHIVE) as file:
        head = file.read(4096)
    if not head.strip(b" \t\r\n\0"):
        raise DatasetError(f"'{path}' is {'filled with zeros' if head.strip() else 'empty'}. {_EXPECTED}")
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise DatasetError(f"'{path}' is compressed. Unpack it first: samples are read in any order.")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        return "tar"
    if head.startswith(b"PAR1"):
        return "table"
    if start.startswith((b"[", b"{")) or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "json"
    if path.suffix in (".json", ".jsonl", ".ndjson"):
        return "json"  # its first sample is damaged
    raise DatasetError(f"'{path}' is no training data that can be read. {_EXPECTED}")


def _find_files(base: Path, pattern: str, name: str, split: str) -> Sequence[Path]:
    """Return the files that a path or pattern names, sorted. Raises `DatasetError` if there are none."""
    path = base / Path(pattern).expanduser()
    try:
        if os.path.isdir(path):
            return _files_in(path, name, split)
        if os.path.exists(path) or not glob.has_magic(pattern):
            return [path]
        found = sorted(glob.glob(pattern, root_dir=base, recursive=True))[:MAX_FILES]
    except (OSError, ValueError) as error:
        raise DatasetError(f"Dataset '{name}': '{path}' cannot be read: {error}.") from None
    if not found:
        raise DatasetError(f"Dataset '{name}': no file matches '{path}'.")
    return [base / file for file in found]


def _files_in(folder: Path, name: str, split: str) -> Sequence[Path]:
    """Return the data files of a folder: a saved dataset, archives, parquet files of the split, or JSON."""
    if any((folder / file).is_file() for file in _SAVED_BY_DATASETS):
        return [folder]
    for suffix in ("*.tar", "*.parquet", "*.jsonl", "*.json"):
        found = sorted(path for path in folder.rglob(suffix) if not path.name.startswith("."))[:MAX_FILES]
        if suffix == "*.parquet" and found:
            of_split = [
                path for path in found if path.stem == split or path.name.startswith((f"{split}-", f"{split}_"))
            ]
            found = of_split or [path for path in found if path.parent.name == split] or found
        if suffix == "*.json" and len(found) > 1:
            raise DatasetError(
                f"Dataset '{name}': '{folder}' has {len(found)} JSON files, such as '{found[0].name}'. Name one."
            )
        if found:
            return found
    raise DatasetError(f"Dataset '{name}': the folder '{folder}' has no data files. {_EXPECTED}")
