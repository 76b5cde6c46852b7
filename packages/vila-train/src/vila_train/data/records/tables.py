"""Rows of tables: parquet files, and datasets that the library `datasets` saved. Needs `vila-train[datasets]`.

`datasets` copies parquet files once into its cache as Arrow files, which are mapped into memory: any row is read
without its neighbors. Pictures stay encoded, as `{"bytes": …, "path": …}`.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vila_core.errors import listed, unknown_name
from vila_core.input_files import Content, check_input
from vila_core.plugins.lazy import optional_import
from vila_train.data.conversations import SampleError
from vila_train.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Generator

    import datasets

EXTRA = "vila-train[datasets]"


class TableRecords:
    """The rows of parquet files or of a saved dataset.

    Args:
        paths: parquet files, or the folder of one saved dataset.
        split: of a saved dataset that has several.
        columns: names of columns, by the names that they get.
    """

    def __init__(self, paths: Sequence[Path], split: str = "train", columns: Mapping[str, str] | None = None):
        self.paths, self.split = tuple(paths), split
        self.columns = dict(columns or {})
        self._table: datasets.Dataset | None = None

    def __getstate__(self) -> tuple[tuple[Path, ...], str, dict[str, str]]:
        return self.paths, self.split, self.columns

    def __setstate__(self, state: tuple[tuple[Path, ...], str, dict[str, str]]) -> None:
        self.__init__(*state)

    @property
    def table(self) -> "datasets.Dataset":
        """The table. Raises `DatasetError` if it is damaged, has no such split, or no such column."""
        if self._table is None:
            with optional_import("Reading tables", EXTRA):
                import datasets
            with _explained(self.paths):
                table = self._open(datasets)
                for name, feature in table.features.items():
                    if (kept := _encoded(feature, datasets)) is not None:
                        table = table.cast_column(name, kept)
            if unknown := [name for name in self.columns.values() if name not in table.column_names]:
                raise DatasetError(f"'{self.paths[0]}': {unknown_name('column', unknown[0], table.column_names)}")
            self._table = table
        return self._table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Mapping[str, object]:
        """Return row `number`. Raises `SampleError` if it cannot be read."""
        table = self.table
        try:
            row = cast("dict[str, object]", table[number])
        except Exception as error:  # noqa: BLE001 - pyarrow raises many kinds for a damaged file
            raise SampleError(
                f"row {number:,} of '{self.paths[0].name}' cannot be read: {error}.", "damaged row"
            ) from None
        return row | {name: row[column] for name, column in self.columns.items()}

    def _open(self, library: Any) -> "datasets.Dataset":
        first = self.paths[0]
        if first.is_dir():
            _require_files(first)
            try:
                loaded = library.load_from_disk(str(first))
            except IndexError:  # how it says that there is no row
                raise DatasetError(f"'{first}' has no rows.") from None
            if isinstance(loaded, library.DatasetDict):
                if self.split not in loaded:
                    raise DatasetError(
                        f"'{first}' has no split '{self.split}', only {listed(loaded, 10)}. "
                        "Set 'split' of the dataset in a registry."
                    )
                loaded = loaded[self.split]
            return loaded
        import pyarrow.parquet

        filled = [str(path) for path in self.paths if pyarrow.parquet.read_metadata(path).num_rows]
        if not filled:
            raise DatasetError(f"'{first}' has no rows.")
        return library.Dataset.from_parquet(filled, split="train")


def _require_files(folder: Path) -> None:
    """Raise `DatasetError` if something in a folder is not a file: `datasets` would wait for a pipe."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            check_input(path, max_bytes=sys.maxsize, error=DatasetError, advice="Remove it.", content=Content.ANY)


def _encoded(feature: Any, library: Any) -> Any:
    """Return a column's type without decoding of pictures; None if it has none."""
    if isinstance(feature, library.Image) and feature.decode:
        return library.Image(decode=False)
    if isinstance(feature, library.List | library.LargeList):
        inner = _encoded(feature.feature, library)
        return None if inner is None else type(feature)(inner)
    if isinstance(feature, library.Video) and feature.decode:
        return library.Video(decode=False)
    if isinstance(feature, dict):
        inside = cast("dict[str, Any]", feature)
        changed = {name: _encoded(inner, library) for name, inner in inside.items()}
        if any(inner is not None for inner in changed.values()):
            return {name: inside[name] if inner is None else inner for name, inner in changed.items()}
    return None


@contextmanager
def _explained(paths: Sequence[Path]) -> "Generator[None]":
    """Turn the errors of `datasets` and pyarrow into a `DatasetError`."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file raises many kinds
        reason = str(error.__cause__ or error).strip().removesuffix(".") or type(error).__name__
        raise DatasetError(f"'{paths[0]}' cannot be read as a table: {reason}.") from None
