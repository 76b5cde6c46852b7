"""vila-tiny's drawn world: questions about images and videos drawn by vila-train, scored by exact match."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vila_core.errors import MissingDependencyError
from vila_core.plugins.datasets import Dataset
from vila_core.plugins.loader import load_plugins
from vila_eval.data.sources import DataOptions
from vila_eval.metrics.exact_match import EXACT_MATCH
from vila_eval.task import Question, Row, Task

DATASET = "drawn-world"
TESTS = (
    "attribute",
    "count",
    "position",
    "relation",
    "size",
    "word",
    "number",
    "chart",
    "pair",
    "motion",
    "appearance",
)
"""Tests with the question after the image and, for names ending in `_asked`, before it."""


@dataclass(frozen=True)
class DrawnWorld:
    """The first `samples` samples of one test of the drawn world, from the dataset that vila-train registers."""

    test: str
    samples: int = 500
    split: str = "test"
    dataset: str = DATASET

    @property
    def description(self) -> str:
        return f"{self.dataset} ({self.test}, {self.split})"

    def open(self, options: DataOptions) -> "DrawnRows":
        datasets = load_plugins().datasets
        if self.dataset not in datasets:
            raise MissingDependencyError("vila-train", "the drawn world", "vila-train")
        return DrawnRows(datasets.get(self.dataset), self)


class DrawnRows:
    """Rows that are drawn on access."""

    def __init__(self, dataset: Dataset, source: DrawnWorld):
        self._dataset, self._source = dataset, source

    @property
    def origin(self) -> Mapping[str, str]:
        return {"dataset": self._source.dataset, "test": self._source.test, "split": self._source.split}

    def __len__(self) -> int:
        return self._source.samples

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._dataset.sample(self._source.split, self._source.test, index)
        return {
            "id": f"{self._source.test}-{index}",
            "prompt": sample.prompt,
            "answer": sample.answer,
            "kind": sample.category,
            "index": index,
        }

    def locate(self, path: str) -> Path:
        return Path(path)


def ask(row: Row) -> Question:
    """Ask the row's prompt, which has the form that vila-tiny was trained on."""
    return Question(id=row["id"], prompt=row["prompt"], answer=row["answer"], groups={"kind": row["kind"]})


DRAWN_WORLD = tuple(
    Task(
        f"vila/{test}",
        DrawnWorld(test),
        ask,
        EXACT_MATCH,
        tags=("local", "vila/blocks"),
        description="The drawn world of vila-tiny.",
    )
    for test in (*TESTS, "in_context", *(f"{test}_asked" for test in TESTS))
)
