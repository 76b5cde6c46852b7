"""Parquet files and saved datasets."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.train.data.conftest import outline, sample_error

from vila_train.data.entries import DatasetEntry
from vila_train.data.opening import open_dataset
from vila_train.data.sources import RecordSource
from vila_train.errors import DatasetError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Yes."}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def open_table(folder: Path, rows: list[dict[str, Any]], name: str = "data.parquet", **fields: object) -> RecordSource:
    parquet.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=2)
    return open_dataset("set", DatasetEntry.model_validate({"path": name, **fields}), folder)


def test_conversations(folder: Path):
    source = open_table(folder, [{"image": "a.png", "conversations": TURNS} for _ in range(5)])
    assert len(source) == 5
    assert outline(source[4], folder) == [("user", ["<image a.png>", "What?"]), ("assistant", ["Yes."])]
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert pickle.loads(sent)[2].messages[1].content == ["Yes."]


def test_embedded_pictures(folder: Path):
    data = (folder / "a.png").read_bytes()
    for image in ({"bytes": data, "path": None}, {"bytes": data, "path": "/etc/passwd"}, data):
        source = open_table(folder, [{"image": image, "conversations": TURNS}])
        picture: Any = source[0].messages[0].content[0]  # pyright: ignore
        assert picture.size == (8, 6)
        (folder / "data.parquet").unlink()


def test_messages_with_images_beside_them(folder: Path):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    images = [{"bytes": (folder / "a.png").read_bytes(), "path": None}]
    source = open_table(folder, [{"messages": messages, "images": images}])
    picture: Any
    picture, text = source[0].messages[0].content  # pyright: ignore
    assert (picture.size, text) == ((8, 6), "What?")


def test_images_inside_messages(folder: Path):
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    features = datasets.Features({"messages": [{"role": datasets.Value("string"), "content": [part]}]})
    content = [
        {"type": "image", "text": None, "image": str(folder / "a.png")},
        {"type": "text", "text": "What?", "image": None},
    ]
    answer = [{"type": "text", "text": "Yes.", "image": None}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    table = datasets.Dataset.from_dict({"messages": [messages]}, features=features)
    table.save_to_disk(str(folder / "saved"))
    source = open_dataset("set", DatasetEntry(path=("saved",)), folder)
    picture: Any
    picture, text = source[0].messages[0].content  # pyright: ignore
    assert (picture.size, text) == ((8, 6), "What?")


def test_texts_and_renamed_columns(folder: Path):
    rows = [{"texts": [{"user": "What?", "assistant": "Yes."}], "images": ["a.png"]}]
    assert outline(open_table(folder, rows)[0], folder)[0] == ("user", ["<image a.png>", "What?"])
    rows = [{"q": "What?", "label": "Yes.", "picture": "b.png"}]
    source = open_table(
        folder, rows, "other.parquet", format="qa", columns={"question": "q", "answer": "label", "image": "picture"}
    )
    assert outline(source[0], folder) == [("user", ["<image b.png>", "What?"]), ("assistant", ["Yes."])]


def test_saved_datasets(folder: Path):
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    )
    rows = {"question": ["What?"], "answer": ["Yes."], "image": [str(folder / "a.png")]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(folder / "splits"))
    for name in ("saved", "splits"):
        source = open_dataset("set", DatasetEntry(path=(name,)), folder)
        picture: Any = source[0].messages[0].content[0]  # pyright: ignore
        assert picture.size == (8, 6)
    with pytest.raises(DatasetError, match=r"has no split 'dev', only train, test\. Set 'split'"):
        len(open_dataset("set", DatasetEntry(path=("splits",), split="dev"), folder))


def test_folder_of_splits(folder: Path):
    (folder / "tables").mkdir()
    for split, count in (("train", 2), ("test", 1)):
        rows = [{"question": f"{split}?", "answer": "x"}] * count
        parquet.write_table(pa.Table.from_pylist(rows), folder / "tables" / f"{split}-00000-of-00001.parquet")
    for split, count in (("train", 2), ("test", 1)):
        source = open_dataset("set", DatasetEntry(path=("tables",), split=split), folder)
        assert len(source) == count
        assert outline(source[0], folder)[0] == ("user", [f"{split}?"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": None, "conversations": TURNS}, "more placeholders than media"),
        ({"image": "none.png", "conversations": TURNS}, "missing media file"),
        ({"image": "../secret.png", "conversations": TURNS}, "media outside its folder"),
        ({"image": {"bytes": None, "path": "/etc/passwd"}, "conversations": TURNS}, "media outside its folder"),
        ({"image": {"bytes": None, "path": None}, "conversations": TURNS}, "media name is not a text"),
        ({"image": "a.png", "conversations": None}, "no messages"),
        ({"image": "a.png", "conversations": []}, "empty conversation"),
        ({"image": "a.png", "conversations": [{"from": "human", "value": None}]}, "message is not a text"),
        ({"image": "a.png", "conversations": [{"from": "x", "value": "y"}]}, "unknown role"),
        ({"image": 3, "conversations": TURNS}, "media name is not a text"),
        ({"image": "a.png", "conversations": "Hi"}, "no messages"),
    ],
)
def test_bad_rows(folder: Path, row: dict[str, Any], reason: str):
    assert sample_error(open_table(folder, [row], format="llava")).reason == reason


def test_damaged_files(folder: Path):
    open_table(folder, [{"question": "x" * 1000, "answer": "y"}])
    data = (folder / "data.parquet").read_bytes()
    for damaged in (data[:-20], data[: len(data) // 2], b"PAR1" + b"x" * 500 + b"PAR1", b"PAR1"):
        (folder / "data.parquet").write_bytes(damaged)
        with pytest.raises(DatasetError, match="cannot be read as a table"):
            len(open_dataset("set", DatasetEntry(path=("data.parquet",)), folder))


def test_unknown_columns_and_formats(folder: Path):
    with pytest.raises(DatasetError, match=r"Unknown column 'label'\. Known: answer, question"):
        open_table(folder, [{"question": "x", "answer": "y"}], format="qa", columns={"answer": "label"})[0]
    with pytest.raises(DatasetError, match="no known format"):
        open_table(folder, [{"x": 1}], "b.parquet")
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match="has no data files"):
        open_dataset("set", DatasetEntry(path=("empty",)), folder)


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from vila_core.errors import MissingDependencyError

    source = open_table(folder, [{"question": "x", "answer": "y"}], format="qa")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"datasets.*vila-train\[datasets\]|vila-train"):
        len(source)


def test_tables_without_rows(folder: Path):
    datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]}).select([]).save_to_disk(str(folder / "saved"))
    parquet.write_table(pa.table({"question": ["a"], "answer": ["b"]}).slice(0, 0), folder / "empty.parquet")
    for name in ("saved", "empty.parquet"):
        with pytest.raises(DatasetError, match=f"{name}' has no rows"):
            open_dataset("set", DatasetEntry(path=(name,)), folder)


def test_one_of_several_files_may_be_empty(folder: Path):
    some = pa.table({"question": ["a", "b"], "answer": ["c", "d"]})
    parquet.write_table(some.slice(0, 0), folder / "0.parquet")
    parquet.write_table(some, folder / "1.parquet")
    assert len(open_dataset("set", DatasetEntry(path=("*.parquet",)), folder)) == 2
