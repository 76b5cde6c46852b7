"""Fingerprints of datasets: which changes they notice, and which do not count."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tests.train.data.test_webdataset import captioned, write_tar

import vila_core
from vila_core.chat import Message
from vila_core.plugins.datasets import Sample
from vila_train.data.conversations import Conversation, SampleError
from vila_train.data.entries import DatasetEntry
from vila_train.data.fingerprints import SAMPLES, dataset_fingerprint
from vila_train.data.opening import open_dataset
from vila_train.data.sources import RegisteredSource, Subset

Write = Callable[[Path, Sequence[int]], object]


def record(number: int, image: str = "a.png") -> dict[str, object]:
    turns = [{"from": "human", "value": f"<image>\nQuestion {number}?"}, {"from": "gpt", "value": f"Answer {number}."}]
    return {"image": image, "conversations": turns}


def write_lines(file: Path, numbers: Sequence[int]) -> None:
    file.write_text("".join(json.dumps(record(number)) + "\n" for number in numbers))


def write_list(file: Path, numbers: Sequence[int]) -> None:
    file.write_text(json.dumps([record(number) for number in numbers]))


def write_archive(file: Path, numbers: Sequence[int]) -> None:
    write_tar(file, [member for number in numbers for member in captioned(1, number)])


def write_table(file: Path, numbers: Sequence[int]) -> None:
    pytest.importorskip("datasets")
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist([record(number) for number in numbers]), file, row_group_size=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with suppress(ImportError):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def fingerprint(file: Path, name: str = "set") -> str:
    return dataset_fingerprint(open_dataset(name, DatasetEntry(path=(file.name,)), file.parent))


@pytest.mark.parametrize("count", [3, 500])
@pytest.mark.parametrize(
    ("name", "write"),
    [("0.jsonl", write_lines), ("0.json", write_list), ("0.tar", write_archive), ("0.parquet", write_table)],
)
def test_another_order_and_other_samples_are_noticed_and_copies_are_not(
    folder: Path, name: str, write: Write, count: int
):
    numbers = list(range(count))
    write(folder / name, numbers)
    found = fingerprint(folder / name)
    moved = folder.parent / "elsewhere"
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)  # with new dates
    assert fingerprint(moved / name, "renamed") == found
    shuffled = np.random.default_rng(0).permutation(count).tolist()
    for changed in (shuffled, numbers[1:] + numbers[:1], [number + 1 for number in numbers], numbers[:-1]):
        write(moved / name, changed)
        assert fingerprint(moved / name) != found
    write(moved / name, numbers)
    assert fingerprint(moved / name) == found


def test_of_media_files_only_the_names_count(folder: Path):
    write_lines(folder / "0.jsonl", range(3))
    found = fingerprint(folder / "0.jsonl")
    (folder / "a.png").write_bytes(b"not opened")
    assert fingerprint(folder / "0.jsonl") == found
    (folder / "0.jsonl").write_text("".join(json.dumps(record(number, "b.png")) + "\n" for number in range(3)))
    assert fingerprint(folder / "0.jsonl") != found


def test_embedded_media_count(folder: Path):
    members = captioned(3)
    write_tar(folder / "0.tar", members)
    found = fingerprint(folder / "0.tar")
    write_tar(folder / "0.tar", [(members[0][0], (folder / "b.png").read_bytes() + b"\0"), *members[1:]])
    assert fingerprint(folder / "0.tar") != found


@pytest.mark.parametrize("damaged", ["{broken", "[1]", json.dumps({}), json.dumps(record(1, "no.png"))])
def test_damaged_samples_count_as_damaged(folder: Path, damaged: str):
    write_lines(folder / "0.jsonl", range(3))
    lines = (folder / "0.jsonl").read_text().splitlines()
    found = fingerprint(folder / "0.jsonl")
    (folder / "0.jsonl").write_text("\n".join([lines[0], damaged, lines[2]]))
    with pytest.raises(SampleError):
        open_dataset("set", DatasetEntry(path=("0.jsonl",)), folder)[1]
    changed = fingerprint(folder / "0.jsonl")
    assert changed != found
    shutil.copytree(folder, folder.parent / "elsewhere")
    assert fingerprint(folder.parent / "elsewhere" / "0.jsonl") == changed


class Plugin:
    """A dataset of the hook `vila_datasets`, some of whose samples raise what a plugin should not."""

    name, splits = "plugin", ("train",)

    def __init__(self, word: str):
        self.word = word

    def subsets(self) -> Sequence[str]:
        return ("all",)

    def size(self, split: str, subset: str) -> int:
        return 10

    def sample(self, split: str, subset: str, index: int) -> Sample:
        if index == 3:
            raise KeyError(index)
        picture = vila_core.Image(PIL.Image.new("RGB", (8, 8)))
        return Sample([picture, f"{self.word} {index}?"], "Yes.")


def registered(word: str) -> RegisteredSource:
    source = RegisteredSource("plugin")
    source._sizes, source._dataset = {"all": 10}, Plugin(word)
    return source


def test_datasets_of_plugins():
    assert dataset_fingerprint(registered("Red")) == dataset_fingerprint(registered("Red"))
    assert dataset_fingerprint(registered("Red")) != dataset_fingerprint(registered("Blue"))
    drawn = [dataset_fingerprint(RegisteredSource("drawn-world", (name,))) for name in ("count", "count", "word")]
    assert drawn[0] == drawn[1] != drawn[2]


class Counting:
    """Notes what is read of it, and cannot read every second sample."""

    name = "counting"

    def __init__(self, is_document: bool = False) -> None:
        self.read: list[int] = []
        self.is_document = is_document

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> Conversation:
        self.read.append(index)
        if index % 2:
            raise ValueError("damaged")
        return Conversation(f"{index}", [Message("user", "Why?"), Message("assistant", f"{index}")], self.is_document)


def test_few_samples_of_large_datasets_are_read_in_their_order():
    source = Counting()
    found = dataset_fingerprint(source)
    assert len(source.read) == SAMPLES == len({*source.read})
    assert source.read == sorted(source.read)
    assert source.read[-1] - source.read[0] > 0.9 * len(source)
    assert dataset_fingerprint(Counting(is_document=True)) != found


def test_other_samples_in_a_subset_are_noticed():
    one, two = (Subset(Counting(), np.arange(5) + first) for first in (0, 1))
    assert dataset_fingerprint(one) != dataset_fingerprint(two)
