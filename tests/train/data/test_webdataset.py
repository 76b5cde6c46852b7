"""Webdataset archives: key grouping, captions and conversations, damaged archives."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import PIL.Image
import pytest
from tests.train.data.conftest import sample_error

from vila_core.media import Image, Video
from vila_train.data.entries import DatasetEntry
from vila_train.data.opening import open_dataset
from vila_train.data.records.tar_records import TarRecords
from vila_train.data.sources import RecordSource
from vila_train.errors import DatasetError


def picture(color: str = "red") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), color).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def captioned(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    return [
        member
        for n in range(start, start + count)
        for member in ((f"{n:09d}.jpg", picture()), (f"{n:09d}.txt", f"Caption {n}".encode()), (f"{n:09d}.json", b"{}"))
    ]


def open_tar(tmp_path: Path, members: list[tuple[str, bytes]], **fields: object) -> RecordSource:
    write_tar(tmp_path / "0.tar", members)
    return open_dataset("set", DatasetEntry.model_validate({"path": "0.tar", **fields}), tmp_path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_key_grouping(tmp_path: Path, format: int):
    long = "x" * 150 if format != tarfile.USTAR_FORMAT else "x"
    members = [
        ("./a/1.jpg", b"1"), ("./a/1.seg.png", b"2"), ("./a/1.TXT", b"3"),
        ("b/1.jpg", b"4"),
        ("b.c/2.jpg", b"5"), ("b.c/2.txt", b"6"),
        ("__meta__", b"-"), (".hidden", b"-"), ("README", b"-"), ("b/.hidden.jpg", b"-"),
        (f"{long}.jpg", b"7"), (f"{long}.cls", b"8"),
        ("1.jpg", b"9"),
    ]  # fmt: skip
    records = TarRecords(write_tar(tmp_path / "0.tar", members, format))
    assert [dict(records[n]) for n in range(len(records))] == [
        {"jpg": b"1", "seg.png": b"2", "txt": b"3"},
        {"jpg": b"4"},
        {"jpg": b"5", "txt": b"6"},
        {"jpg": b"7", "cls": b"8"},
        {"jpg": b"9"},
    ]


def test_the_same_key_later_is_another_sample(tmp_path: Path):
    records = TarRecords(write_tar(tmp_path / "0.tar", [("1.jpg", b"a"), ("2.jpg", b"b"), ("1.txt", b"c")]))
    assert [dict(records[n]) for n in range(len(records))] == [{"jpg": b"a"}, {"jpg": b"b"}, {"txt": b"c"}]


def test_captions(tmp_path: Path):
    source = open_tar(tmp_path, captioned(3))
    assert len(source) == 3
    user, assistant = source[2].messages
    assert (user.role, assistant.role, assistant.content) == ("user", "assistant", ["Caption 2"])
    (image,) = user.content  # pyright: ignore
    assert isinstance(image, Image)
    assert image.size == (8, 6)
    assert not source[2].is_document


def test_captions_as_documents(tmp_path: Path):
    conversation = open_tar(tmp_path, [("1.png", picture()), ("1.txt", b"<image> of a cat")], learn="document")[0]
    assert conversation.is_document
    (message,) = conversation.messages
    image, text = message.content  # pyright: ignore
    assert isinstance(image, Image)
    assert text == "\n<IMAGE> of a cat"


def test_pictures_to_draw_from_captions(tmp_path: Path):
    members = [("1.png", picture()), ("1.json", b'{"prompt": "A <image> of a cat"}')]
    user, assistant = open_tar(tmp_path, members, learn="picture")[0].messages
    assert user.content == ["A <IMAGE> of a cat"]
    (image,) = assistant.content  # pyright: ignore
    assert isinstance(image, Image)


@pytest.mark.parametrize(
    "members",
    [
        {"webp": picture(), "json": b'{"caption": "Caption"}'},
        {"jpeg": picture(), "json": b'{"text": "Caption", "caption": null}'},
        {"png": picture(), "caption": b"\xef\xbb\xbfCaption\n"},
        {"JPG": picture(), "Txt": b"Caption"},
        {"jpg": picture(), "png": picture("blue"), "txt": b"Caption", "npy": b"", "cls": b"4"},
    ],
)
def test_layouts_of_captions(tmp_path: Path, members: Mapping[str, bytes]):
    source = open_tar(tmp_path, [(f"1.{suffix}", data) for suffix, data in members.items()])
    assert source[0].messages[1].content == ["Caption"]
    assert len(source[0].messages[0].content) == 1  # pyright: ignore


def test_videos_with_captions(tmp_path: Path):
    source = open_tar(tmp_path, [("1.mp4", b"\0\0\0\x18ftypmp42"), ("1.txt", b"A walk.")])
    assert isinstance(source[0].messages[0].content[0], Video)  # pyright: ignore


def test_conversations(tmp_path: Path):
    turns = [{"from": "human", "value": "<image>\n<image>\nCompare."}, {"from": "gpt", "value": "Both red."}]
    facts = json.dumps({"conversations": turns}).encode()
    source = open_tar(tmp_path, [("1.json", facts), ("1.10.img", picture("blue")), ("1.2.img", picture())])
    first, second, text = source[0].messages[0].content  # pyright: ignore
    assert text == "Compare."
    assert [image.load().getpixel((0, 0)) for image in (first, second)] == [(255, 0, 0), (0, 0, 255)]  # pyright: ignore


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"jpg": picture()}, "no answer"),
        ({"txt": b"Caption"}, "missing media file"),
        ({"jpg": picture(), "txt": b""}, "empty message"),
        ({"jpg": picture(), "txt": b" \n"}, "empty message"),
        ({"jpg": picture(), "txt": b"caf\xe9"}, "message is not a text"),
        ({"jpg": picture(), "json": b"{"}, "damaged JSON"),
        ({"jpg": picture(), "json": b"[]"}, "damaged JSON"),
        ({"jpg": picture(), "json": b'{"caption": 7}'}, "no answer"),
        ({"jpg": picture(), "json": b'{"conversations": 7}'}, "no messages"),
        ({"jpg": picture(), "json": b'{"conversations": [{"from": "gpt", "value": "x"}]}'},
         "does not start with the user"),
        ({"json": b'{"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}'},
         "more placeholders than media"),
        ({"mp3": b"x", "txt": b"Song"}, "missing media file"),
    ],
)  # fmt: skip
def test_bad_samples(tmp_path: Path, members: Mapping[str, bytes], reason: str):
    source = open_tar(tmp_path, [(f"1.{suffix}", data) for suffix, data in members.items()] + captioned(1, 2))
    assert sample_error(source).reason == reason
    assert len(source[1].messages) == 2


def test_repeated_members(tmp_path: Path):
    source = open_tar(tmp_path, [("1.jpg", picture()), ("1.txt", b"a"), ("1.txt", b"b")])
    assert sample_error(source).reason == "damaged archive"


def test_pictures_are_decoded_later(tmp_path: Path):
    source = open_tar(tmp_path, [("1.jpg", b"no picture"), ("1.txt", b"Caption")])
    assert source[0].messages[1].content == ["Caption"]


@pytest.mark.parametrize("cut", [1100, 2048, 3000, 4000])
def test_truncated_archives_count_the_damage(tmp_path: Path, cut: int):
    members = [(f"{n}.{suffix}", data) for n in range(3) for suffix, data in (("jpg", picture()), ("txt", b"Caption"))]
    path = write_tar(tmp_path / "0.tar", members)
    path.write_bytes(path.read_bytes()[:cut])
    source = open_dataset("set", DatasetEntry(path=("0.tar",)), tmp_path)
    error = sample_error(source, len(source) - 1)
    assert error.reason == "damaged archive"
    assert "samples before are used" in str(error)


def test_archive_without_a_complete_member(tmp_path: Path):
    path = write_tar(tmp_path / "0.tar", captioned(1))
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(DatasetError, match="not a tar archive that can be read"):
        len(open_dataset("set", DatasetEntry(path=("0.tar",)), tmp_path))


def test_archive_without_its_end_mark(tmp_path: Path):
    path = write_tar(tmp_path / "0.tar", captioned(2))
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset_data + 512
    path.write_bytes(data[:end])
    source = open_dataset("set", DatasetEntry(path=("0.tar",)), tmp_path)
    assert len(source) == 3
    assert source[1].messages[1].content == ["Caption 1"]
    assert "not complete" in str(sample_error(source, 2))


def test_two_archives_in_one_file_are_not_read_as_one_silently(tmp_path: Path):
    path = write_tar(tmp_path / "0.tar", captioned(2))
    path.write_bytes(path.read_bytes() * 2)
    source = open_dataset("set", DatasetEntry(path=("0.tar",)), tmp_path)
    assert len(source) == 3
    assert "several archives in one file: its 2 samples before are used" in str(sample_error(source, 2))


def test_damage_in_the_middle(tmp_path: Path):
    path = write_tar(tmp_path / "0.tar", captioned(4))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        start = archive.getmembers()[6].offset
    data[start : start + 512] = b"x" * 512
    path.write_bytes(data)
    source = open_dataset("set", DatasetEntry(path=("0.tar",)), tmp_path)
    assert len(source) == 3
    assert [source[n].messages[1].content for n in range(2)] == [["Caption 0"], ["Caption 1"]]
    assert sample_error(source, 2).reason == "damaged archive"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b"\0" * 10240, "holds no samples|filled with zeros"),
        (b"x" * 10240, "not a tar archive"),
        (b"\x1f\x8b" + b"\0" * 1000, "is compressed. Unpack it first"),
    ],
)
def test_files_that_are_no_archives(tmp_path: Path, data: bytes, problem: str):
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(DatasetError, match=problem):
        len(open_dataset("set", DatasetEntry(path=("0.tar",)), tmp_path))


def test_links_and_devices_are_left_out(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, kind in (("1.jpg", tarfile.SYMTYPE), ("1.png", tarfile.LNKTYPE), ("1.bmp", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("1.txt")
        info.size = 7
        archive.addfile(info, io.BytesIO(b"Caption"))
    records = TarRecords(tmp_path / "0.tar")
    assert [dict(records[n]) for n in range(len(records))] == [{"txt": b"Caption"}]


def test_several_archives_of_a_folder(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    for n in range(3):
        write_tar(tmp_path / "shards" / f"{n:05d}.tar", captioned(2, 2 * n))
        (tmp_path / "shards" / f"{n:05d}_stats.json").write_text("{}")
    for path in ("shards", "shards/*.tar", ("shards/00000.tar", "shards/0000[12].tar")):
        source = open_dataset("set", DatasetEntry.model_validate({"path": path}), tmp_path)
        assert [source[n].messages[1].content for n in range(6)] == [[f"Caption {n}"] for n in range(6)]
        sent = pickle.dumps(source)
        assert len(sent) < 3000
        assert pickle.loads(sent)[5].messages[1].content == ["Caption 5"]
