"""Random damage to data files of every kind: samples or an error that a user can read, nothing else."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from vila_train.data.conversations import ConversationSource, SampleError
from vila_train.data.entries import DatasetEntry
from vila_train.data.opening import open_dataset
from vila_train.errors import DatasetError

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": 'It [is] {"a" \\ cat}, ü.'}]
RECORDS = [{"image": "a.png", "id": n, "conversations": TURNS} for n in range(6)]


def as_list() -> bytes:
    return json.dumps(RECORDS, indent=1).encode()


def as_lines() -> bytes:
    return "\n".join(map(json.dumps, RECORDS)).encode()


def as_archive() -> bytes:
    picture, data = io.BytesIO(), io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(picture, "PNG")
    with tarfile.open(fileobj=data, mode="w") as archive:
        for number in range(4):
            for suffix, content in (("png", picture.getvalue()), ("json", json.dumps(RECORDS[0]).encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def damage(data: bytes, rng: random.Random) -> bytes:
    """Cut, overwrite, repeat or insert a few bytes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(result) or 1)
        length = rng.choice((1, 1, 2, 20, 600))
        kind = rng.randrange(5)
        if kind == 0:
            del result[place : place + length]
        elif kind == 1:
            result[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            result[place:place] = rng.choice((b'"', b"{", b"}", b"[", b"]", b"\\", b",", b"\n", b"\0", b"\xff"))
        elif kind == 3:
            result[place:place] = result[place : place + length]
        else:
            result = result[:place]
    return bytes(result)


@pytest.mark.parametrize("make", [as_list, as_lines, as_archive])
@pytest.mark.parametrize("seed", range(60))
def test_damage(tmp_path: Path, make: Callable[[], bytes], seed: int):
    rng = random.Random(seed)
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "data").write_bytes(damage(make(), rng))
    try:
        source = open_dataset("set", DatasetEntry(path=("data",)), tmp_path)
        size = len(source)
    except DatasetError:
        return  # a whole file that cannot be read
    assert [name_of(source, index) for index in range(size)] == [f"set/{index}" for index in range(size)]


def name_of(source: ConversationSource, index: int) -> str:
    """Return the name of a sample, from its error if it is damaged."""
    try:
        return source[index].name
    except SampleError as error:
        return error.sample


def test_no_more_files_are_kept_open_than_allowed(tmp_path: Path):
    import os

    from vila_train.data.records.spans import MAX_OPEN

    for number in range(MAX_OPEN + 40):
        (tmp_path / f"{number:03d}.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    source = open_dataset("set", DatasetEntry(path=("*.jsonl",)), tmp_path)
    for _ in range(2):
        assert all(source[index].messages for index in range(len(source)))
    if Path("/proc/self/fd").exists():
        names = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        assert sum(name.startswith(str(tmp_path)) for name in names) <= MAX_OPEN
