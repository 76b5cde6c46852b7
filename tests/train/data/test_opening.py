"""Files are recognized by their content, and what is no training data is refused with a reason."""

import json
from pathlib import Path

import pytest

from vila_train.data.entries import DatasetEntry
from vila_train.data.formats.captions import WebdatasetReader
from vila_train.data.formats.chat import ChatReader
from vila_train.data.formats.documents import Mmc4Reader
from vila_train.data.formats.instructions import FlanReader, M3itReader
from vila_train.data.formats.llava import LlavaReader
from vila_train.data.formats.questions import QuestionReader, TextsReader
from vila_train.data.formats.videos import VideoReader
from vila_train.data.opening import open_dataset
from vila_train.errors import DatasetError


def open_file(path: Path, **fields: object):
    return open_dataset("set", DatasetEntry.model_validate({"path": path.name, **fields}), path.parent)


@pytest.mark.parametrize(
    ("record", "reader"),
    [
        ({"conversations": []}, LlavaReader),
        ({"id": 1, "video": "x", "conversations": []}, LlavaReader),
        ({"messages": []}, ChatReader),
        ({"messages": [], "images": []}, ChatReader),
        ({"text_list": [], "image_info": [], "url": "x"}, Mmc4Reader),
        ({"instruction": "x", "inputs": "", "outputs": "y"}, M3itReader),
        ({"inputs": "x", "targets": "y"}, FlanReader),
        ({"texts": [], "images": []}, TextsReader),
        ({"question": "x", "answer": "y"}, QuestionReader),
        ({"prompt": "x", "answer": "y", "image": "z"}, QuestionReader),
        ({"video_id": "x", "captions": []}, VideoReader),
        ({"video_id": "x", "q": "y", "a": "z"}, VideoReader),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data", "data.txt", "data.parquet"])
def test_formats(tmp_path: Path, record: dict[str, object], reader: type, name: str):
    path = tmp_path / name
    path.write_text(json.dumps(record))
    assert isinstance(open_file(path).reader, reader)


def test_first_samples_may_be_damaged(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text("{\nnull\n{}\n" + json.dumps({"messages": []}))
    assert isinstance(open_file(path).reader, ChatReader)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\0" * 5000, "filled with zeros"),
        (b"\x1f\x8b\x08\0abc", "compressed. Unpack it first"),
        (b"PK\x03\x04abc", "compressed"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "no training data"),
        (b"question,answer\nx,y\n", "no training data"),
        (b"\xff\xfe{\0}\0", "UTF-16"),
        (b'{"a": 1}', r"keys 'a', which is no known format.*'conversations' \(LLaVA\)"),
        (b"{}", "keys none"),
        (b'{\n  "messages": []\n}', "span several lines are rewritten with: jq -c"),
        (b"{bad}\n{bad}\n", "no readable sample among its first 100"),
        (b'{"error": "Invalid username or password."}', "error message of a download"),
    ],
)
def test_no_training_data(tmp_path: Path, data: bytes, problem: str):
    path = tmp_path / "data"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=problem):
        open_file(path)


def test_format_that_does_not_fit(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text("{}\n")
    with pytest.raises(DatasetError, match="'webdataset' does not fit"):
        open_file(path, format="webdataset")
    (tmp_path / "0.tar").write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 1000)
    with pytest.raises(DatasetError, match="'llava' does not fit"):
        open_file(tmp_path / "0.tar", format="llava")
    with pytest.raises(DatasetError, match="several kinds: json, tar"):
        open_dataset("set", DatasetEntry(path=("data.jsonl", "0.tar")), tmp_path)


def test_folders(tmp_path: Path):
    record = json.dumps({"question": "x", "answer": "y"})
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "chat.json").write_text(f"[{record}]")
    (tmp_path / "lines").mkdir()
    for name in ("b.jsonl", "a.jsonl", ".a.jsonl.samples.npy"):
        (tmp_path / "lines" / name).write_text(record + "\n")
    assert len(open_file(tmp_path / "one")) == 1
    assert len(open_file(tmp_path / "lines")) == 2
    (tmp_path / "one" / "other.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"has 2 JSON files, such as .chat\.json.\. Name one"):
        open_file(tmp_path / "one")


@pytest.mark.parametrize("path", ["none.jsonl", "none/*.jsonl", "a\0b", "x" * 5000])
def test_missing_files(tmp_path: Path, path: str):
    with pytest.raises(DatasetError):
        open_dataset("set", DatasetEntry(path=(path,)), tmp_path)


def test_webdataset(tmp_path: Path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "noname", "w") as archive:
        info = tarfile.TarInfo("1.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    assert isinstance(open_file(tmp_path / "noname").reader, WebdatasetReader)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"data": [{"conversations": []}], "version": 1}', "If its samples are in 'data', save that list"),
        ('{\n  "conversations": []\n}', "Expected a JSON list of samples, or one sample per line"),
    ],
)
def test_one_object_instead_of_samples(tmp_path: Path, content: str, problem: str):
    path = tmp_path / "one.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=problem):
        open_file(path)
