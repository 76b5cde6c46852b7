"""Sources of conversations: records of files with a reader, parts of other sources, and registered datasets.

N samples
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vila_core.chat import Message
from vila_core.plugins.datasets import Dataset
from vila_core.plugins.loader import load_plugins
from vila_train.data.bad_samples import as_skipped
from vila_train.data.conversations import Conversation, ConversationSource, SampleError
from vila_train.data.turns import check_turns
from vila_train.errors import DatasetError

ENDLESS_SIZE = 100_000
"""How many samples of a dataset that generates any number of them make an epoch."""


class Records(Protocol):
    """What the samples of a file are made from, by number. Cheap to pickle."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Mapping[str, object]:
        """Raises `SampleError` if the record is damaged."""
        ...


class Reader(Protocol):
    """Turns one record into messages."""

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Raises `SampleError`, `MediaError` or `PromptError`."""
        ...


@dataclass(frozen=True)
class RecordSource:
    """Conversations made from records.

    Attributes:
        name: of the dataset.
        records: of its file.
        reader: of its format.
        is_document: its samples are running text.
    """

    name: str
    records: Records
    reader: Reader
    is_document: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Conversation:
        return self.read(index, f"{self.name}/{index}")

    def read(self, index: int, name: str) -> Conversation:
        """Return conversation `index` under another name. Raises `SampleError`."""
        try:
            return Conversation(name, self.reader.read(self.records[index]), self.is_document)
        except Exception as error:  # noqa: BLE001 - a reader may raise anything for a damaged record
            raise as_sample_error(name, error) from None


def as_sample_error(name: str, error: Exception) -> SampleError:
    """Return an error that names the sample. Raise `error` itself if the sample is not to blame."""
    skipped = as_skipped(error, name)
    return SampleError(f"{name}: {skipped.message}", skipped.reason, name)


class JoinedRecords:
    """The records of several files, one after the other."""

    def __init__(self, files: Sequence[Records]):
        self.files = files
        self._ends: list[int] | None = None

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def ends(self) -> list[int]:
        """For each file, the number of records in it and those before."""
        if self._ends is None:
            self._ends = list(accumulate(map(len, self.files)))
        return self._ends

    def __getitem__(self, number: int) -> Mapping[str, object]:
        file = bisect_right(self.ends, number)
        return self.files[file][number - (self.ends[file - 1] if file else 0)]


def joined(files: Sequence[Records]) -> Records:
    """Return the records of one or several files."""
    return files[0] if len(files) == 1 else JoinedRecords(files)


@dataclass(frozen=True)
class JoinedSource:
    """The conversations of several sources, one after the other.

    Attributes:
        name: of the dataset.
        sources: of its folders.
    """

    name: str
    sources: Sequence[RecordSource]

    @cached_property
    def ends(self) -> list[int]:
        """For each source, the number of samples in it and those before."""
        return list(accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Conversation:
        number = bisect_right(self.ends, index)
        first = self.ends[number - 1] if number else 0
        return self.sources[number].read(index - first, f"{self.name}/{index}")


@dataclass(frozen=True)
class Subset:
    """Some samples of another source. They keep their names.

    Attributes:
        source: that it is a part of.
        indices: of its samples in `source`, `[N]`.
    """

    source: ConversationSource
    indices: npt.NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Conversation:
        return self.source[int(self.indices[index])]


def whole_source(source: ConversationSource) -> ConversationSource:
    """Return the source that `source` is a subset of, or itself."""
    return source.source if isinstance(source, Subset) else source


class RegisteredSource:
    """Training samples of a dataset of the hook `vila_datasets`: prompts and answers.

    Args:
        name: of the registered dataset.
        subsets: which of its parts; empty for all of them.
    """

    def __init__(self, name: str, subsets: Sequence[str] = ()):
        self.name = name
        self._chosen = tuple(subsets)
        self._dataset: Dataset | None = None
        self._sizes: dict[str, int] = {}

    def __getstate__(self) -> tuple[str, tuple[str, ...]]:
        return self.name, self._chosen

    def __setstate__(self, state: tuple[str, tuple[str, ...]]) -> None:
        self.__init__(*state)

    @property
    def dataset(self) -> Dataset:
        """The dataset. Raises `ConfigError` for an unknown name or subset."""
        if self._dataset is None:
            dataset = load_plugins().datasets.get(self.name)
            subsets = self._chosen or dataset.subsets()
            if not subsets:
                raise DatasetError(f"The dataset '{self.name}' has no subsets, so it has no samples.")
            sizes = {subset: dataset.size("train", subset) for subset in subsets}
            share = max(1, ENDLESS_SIZE // len(sizes))
            self._sizes = {subset: share if size is None else size for subset, size in sizes.items()}
            self._dataset = dataset
        return self._dataset

    @property
    def sizes(self) -> Mapping[str, int]:
        """Samples of each subset."""
        return self._sizes if self.dataset else {}

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def __getitem__(self, index: int) -> Conversation:
        name = f"{self.name}/{index}"
        ends = list(accumulate(self.sizes.values()))
        place = bisect_right(ends, index)
        subset = list(self.sizes)[place]
        try:
            sample = self.dataset.sample("train", subset, index - (ends[place - 1] if place else 0))
            messages = [Message("user", list(sample.prompt)), Message("assistant", [sample.answer])]
            return Conversation(name, check_turns(messages))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything for a damaged sample
            raise as_sample_error(name, error) from None
