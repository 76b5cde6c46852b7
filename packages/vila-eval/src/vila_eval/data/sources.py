"""Where a task's rows come from: a dataset on the Hugging Face hub, local files, or anything else with `open`.

    HubDataset("lmms-lab/POPE", "test", {"question": "string", "image": "image", …})
    LocalFiles("shapes.jsonl", {"question": "string", …})

A copy of a hub dataset is found with `--data DIR`: `DIR/lmms-lab/POPE` holds the repository's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, cast

from vila_core.media import VIDEO_SUFFIXES, open_media
from vila_eval.data.row_files import read_rows
from vila_eval.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from vila_eval.task import Row


@dataclass(frozen=True)
class DataOptions:
    """Where to look for datasets.

    Attributes:
        mirror: a folder with copies of hub repositories, as `<owner>/<name>/…`. With it, nothing is downloaded.
        fixtures: use each source's miniature dataset instead of the real data.
        cache: folder for downloads, unpacked media and miniatures.
        offline: use only what is in the hub's cache.
        token: access token for gated datasets.
    """

    cache: Path
    mirror: Path | None = None
    fixtures: bool = False
    offline: bool = False
    token: str | None = None


class Rows(Protocol):
    """The rows of a task, in a fixed order."""

    @property
    def origin(self) -> Mapping[str, str]:
        """Identifies the data in the results: repository, split, revision, …"""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def locate(self, path: str) -> Path:
        """Return the path of a file that a row names. The file need not exist."""
        ...


class Source(Protocol):
    """Where a task's rows come from.

    Every worker opens the source, so it must be picklable unless a plugin registers its task.
    """

    @property
    def description(self) -> str:
        """One line for `vila-eval list`, such as "lmms-lab/POPE (test)"."""
        ...

    def open(self, options: DataOptions) -> Rows:
        """Fetch and check the data. Raises `DataError` if it is missing, unreadable, or lacks expected columns."""
        ...


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset on the Hugging Face hub.

    Attributes:
        repository: owner and name.
        split: the split's name in the repository.
        columns: the columns that the task reads, each with its type or a description. Other columns are ignored.
        config: one configuration, or several to concatenate; their rows then have a column "config".
        revision: branch, tag or commit; the commit that was read is recorded.
        archives: patterns of the repository's media files, such as "videos/*.zip" or "*.tar". Archives are unpacked
            once, and parts ("videos.tar.part.aa", "videos.tar.part.ab") are joined.
        data_files: pattern of the files with the rows, if the repository has no configurations.
        fixture: writes a miniature of the repository, in its real schema, to a folder (see `vila_eval.fixtures`).
        media_from: where users get the media, if the repository does not hold them. They go into the folder of a copy
            of the repository, so `--data` is required.
    """

    repository: str
    split: str
    columns: Mapping[str, str]
    config: str | Sequence[str] | None = None
    revision: str = "main"
    archives: Sequence[str] = ()
    data_files: str | None = None
    fixture: Callable[[Path], None] | None = None
    media_from: str | None = None

    @property
    def description(self) -> str:
        config = (
            ""
            if self.config is None
            else self.config
            if isinstance(self.config, str)
            else f"{len(self.config)} configurations"
        )
        return f"{self.repository} ({', '.join(part for part in (config, self.split) if part)})"

    def open(self, options: DataOptions) -> Rows:
        from vila_eval.data.hub import open_repository

        repository = open_repository(self, options)
        configs = [self.config] if isinstance(self.config, str) or self.config is None else list(self.config)
        tables = [repository.read(self, config) for config in configs]
        for table in tables:
            check_columns(self.description, self.columns, table.column_names)
        origin = {"repository": self.repository, "split": self.split, "revision": repository.revision}
        if self.config is not None:
            origin["config"] = ", ".join(str(config) for config in configs)
        return _Tables(tables, configs if len(configs) > 1 else [], origin, repository.media(self.archives))


@dataclass(frozen=True)
class LocalFiles:
    """Rows of a JSON (a list of objects), JSONL, CSV or TSV file.

    Attributes:
        path: the file's path; with `--data DIR`, relative paths start at DIR.
        columns: the columns that the task reads, each with its type or a description.
        media: the folder that relative paths of images and videos start from; None: the file's folder.
        fixture: writes a miniature to a folder: the file under its own name, with media beside it. None: `--fixtures`
            reads the file itself, if it exists (because it comes with its plugin, for example).
        obtain: where users get the file and its media, for the error message if it is missing.
    """

    path: Path | str
    columns: Mapping[str, str]
    media: Path | str | None = None
    fixture: Callable[[Path], None] | None = None
    obtain: str = ""

    @property
    def description(self) -> str:
        return str(self.path)

    def open(self, options: DataOptions) -> Rows:
        from vila_eval.data.hub import FIXTURE_REVISION, write_fixture

        root = Path() if options.mirror is None else options.mirror
        path = root / Path(self.path).expanduser()
        media = path.parent if self.media is None else root / Path(self.media).expanduser()
        origin = {"file": path.name}
        if options.fixtures and not (self.fixture is None and path.exists()):
            media = write_fixture(str(self.path), self.fixture, options)
            path, origin = media / path.name, origin | {"revision": FIXTURE_REVISION}
        elif self.obtain and not path.exists():
            where = "" if options.mirror else " Name the folder that it starts from with --data."
            raise DataError(f"The data file '{path}' is not there. {self.obtain}{where}")
        rows = read_rows(path, self.columns)
        if rows:
            check_columns(self.description, self.columns, rows[0])
        return _List(rows, origin, media)


def check_columns(description: str, expected: Mapping[str, str], found: Iterable[str]) -> None:
    """Raise `DataError` if a column is missing, naming the expected and the found columns."""
    found = list(found)
    if missing := [name for name in expected if name not in found]:
        raise DataError(
            f"{description} has no column {', '.join(repr(name) for name in missing)}. "
            f"Expected: {', '.join(expected)}. Found: {', '.join(found)}. "
            "The dataset may have changed: pin an older revision."
        )


@dataclass(frozen=True)
class MediaFolder:
    """A dataset's media files, found by relative path, or by the end of the path if the folders differ.

    Videos are also found with another suffix: ActivityNet's rows name MP4, MKV and WebM files without a suffix.
    """

    root: Path | None

    def locate(self, path: str) -> Path:
        if self.root is None:
            return Path(path)
        wanted = PurePosixPath(path)
        if ".." in wanted.parts:
            raise DataError(f"A row names the file '{path}', which points out of the dataset's folder.")
        direct = self.root / wanted.relative_to("/") if wanted.is_absolute() else self.root / wanted
        if _exists(direct):
            return direct
        for ending in range(len(wanted.parts)):
            tail = "/".join(wanted.parts[ending:])
            if found := self._by_name.get(wanted.name):
                matching = [file for file in found if f"/{file.relative_to(self.root).as_posix()}".endswith(f"/{tail}")]
                if len(matching) == 1:
                    return matching[0]
        if wanted.suffix.lower() in VIDEO_SUFFIXES:
            names = (wanted.stem + written for suffix in VIDEO_SUFFIXES for written in (suffix, suffix.upper()))
            found = [file for name in names for file in self._by_name.get(name, [])]
            if len(found) == 1:
                return found[0]
        return direct

    @property
    def _by_name(self) -> Mapping[str, list[Path]]:
        return _index(self.root) if self.root else {}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


_indices: dict[Path, dict[str, list[Path]]] = {}


def _index(root: Path) -> dict[str, list[Path]]:
    """Files and folders (of frames) below `root` by name; read once a process, since a dataset may hold a million."""
    if root not in _indices:
        found: dict[str, list[Path]] = {}
        for path in sorted(root.rglob("*")):
            found.setdefault(path.name, []).append(path)
        _indices[root] = found
    return _indices[root]


class _List:
    def __init__(self, rows: list[dict[str, Any]], origin: Mapping[str, str], media: Path):
        self.rows, self.origin, self._media = rows, origin, MediaFolder(media)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def locate(self, path: str) -> Path:
        # The author of a local file may use absolute paths. VNBench's paths start with "/" but are relative.
        return Path(path) if Path(path).is_absolute() and _exists(Path(path)) else self._media.locate(path)


class _Tables:
    """Tables of a hub dataset, one after the other."""

    def __init__(
        self, tables: Sequence[Dataset], configs: Sequence[str | None], origin: Mapping[str, str], media: Path | None
    ):
        self.tables, self.configs, self.origin, self._media = tables, configs, origin, MediaFolder(media)

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def __getitem__(self, index: int) -> Row:
        for number, table in enumerate(self.tables):
            if index < len(table):
                (stored,) = cast("Any", table[index]).to_pylist()
                row: dict[str, Any] = {name: _as_media(value) for name, value in stored.items()}
                return row | {"config": self.configs[number]} if self.configs else row
            index -= len(table)
        raise IndexError(index)

    def locate(self, path: str) -> Path:
        return self._media.locate(path)


def _as_media(value: Any) -> Any:
    """Make an `Image` or `Video` of what `datasets` gives for one that is not decoded; look into lists."""
    if isinstance(value, list):
        return [_as_media(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    cells = cast("dict[str, Any]", value)
    if set(cells) != {"bytes", "path"}:
        return {name: _as_media(cell) for name, cell in cells.items()}
    source = cells["path"] if cells["bytes"] is None else cells["bytes"]
    return None if source is None else open_media(source)
