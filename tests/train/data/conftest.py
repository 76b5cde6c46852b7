"""A media folder, and samples read from a file of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL.Image
import pytest

from vila_core.conversation import Part, parts_of
from vila_core.media import Image
from vila_train.data.conversations import Conversation, SampleError
from vila_train.data.entries import DatasetEntry
from vila_train.data.opening import open_dataset
from vila_train.data.sources import RecordSource

Open = Callable[..., RecordSource]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures, a folder of frames, and a file outside that no dataset may name."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "frames").mkdir()
    for name in ("a.png", "b.png", "sub/c.png", "frames/0.png", "frames/1.png"):
        PIL.Image.new("RGB", (8, 6), "red").save(folder / name)
    (folder / "v.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    return folder


@pytest.fixture
def open_records(folder: Path) -> Open:
    """Return a function that writes records as JSON Lines and opens them, with more fields of an entry."""

    def open_written(*records: object, **fields: object) -> RecordSource:
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return open_dataset("set", DatasetEntry.model_validate({"path": "data.jsonl", **fields}), folder)

    return open_written


def shown_parts(parts: Sequence[Part], folder: Path) -> list[str]:
    """Return parts as texts: media as the names of their files in `folder`, in angle brackets."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        else:
            source = part.source
            name = Path(source).relative_to(folder).as_posix() if isinstance(source, str) else type(source).__name__
            texts.append(f"<{'image' if isinstance(part, Image) else 'video'} {name}>")
    return texts


def outline(conversation: Conversation, folder: Path) -> list[tuple[str, list[str]]]:
    """Return roles and parts of a conversation."""
    return [(message.role, shown_parts(parts_of(message), folder)) for message in conversation.messages]


def sample_error(source: RecordSource, index: int = 0) -> SampleError:
    """Return the error of a bad sample, which names it and can be sent between processes."""
    import pickle

    with pytest.raises(SampleError) as raised:
        source[index]
    error = raised.value
    assert error.sample == f"set/{index}"
    assert str(error).startswith(f"set/{index}: ")
    assert "\n" not in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason, copy.sample) == (str(error), error.reason, error.sample)
    return error
