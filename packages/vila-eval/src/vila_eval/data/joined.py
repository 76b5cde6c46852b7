"""A dataset with its questions in one configuration and its pictures in another, like GQA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vila_eval.errors import DataError

if TYPE_CHECKING:
    from vila_eval.data.sources import DataOptions, HubDataset, Rows
    from vila_eval.task import Row


@dataclass(frozen=True)
class JoinedDataset:
    """The rows of `questions`, each with the column "image" of the row of `pictures` that it names.

    Attributes:
        questions: one row per question.
        pictures: one row per picture, with the columns "id" and "image".
        key: the column of `questions` that holds a picture's "id".
    """

    questions: HubDataset
    pictures: HubDataset
    key: str

    @property
    def description(self) -> str:
        return self.questions.description

    def open(self, options: DataOptions) -> JoinedRows:
        return JoinedRows(self.questions.open(options), self.pictures.open(options), self)


class JoinedRows:
    """The joined rows. Pictures are looked up on access."""

    def __init__(self, questions: Rows, pictures: Rows, source: JoinedDataset):
        self._questions, self._pictures, self._source = questions, pictures, source
        self._index_of = {pictures[index]["id"]: index for index in range(len(pictures))}

    @property
    def origin(self) -> Mapping[str, str]:
        return {**self._questions.origin, "pictures": self._source.pictures.description}

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Row:
        row = self._questions[index]
        name = row[self._source.key]
        if name not in self._index_of:
            raise DataError(
                f"Row {index} of {self._source.description} names the picture '{name}', which is not in the dataset."
            )
        return {**row, "image": self._pictures[self._index_of[name]]["image"]}

    def locate(self, path: str) -> Path:
        return self._pictures.locate(path)
