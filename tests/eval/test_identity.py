"""When an answer may be used again: digests of models, media and prompts."""

import hashlib
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vila_core.checkpoint.fingerprints import SMALL_FILE, WINDOW, WINDOWS
from vila_core.errors import CheckpointError
from vila_core.media import Image, Video
from vila_eval.data.sources import LocalFiles
from vila_eval.options import ModelOptions
from vila_eval.records.schema import RunSettings
from vila_eval.running.identity import (
    describe_prompt,
    folder_digest,
    media_digest,
    model_identity,
    model_name,
    sample_key,
)
from vila_eval.task import Question, Task

SETTINGS = RunSettings(max_new_tokens=8)


def checkpoint(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "llm").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "llm" / "model.safetensors").write_bytes(weights)
    return folder


def test_a_models_digest_is_of_its_files_and_not_of_their_place(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a" / "model"), checkpoint(tmp_path / "b" / "other")
    assert folder_digest(first) == folder_digest(second)
    (second / "README.md").write_text("A model card says nothing to the network.")
    (second / ".cache").mkdir()
    (second / ".cache" / "lock.json").write_text("{}")
    (second / "modeling.py").write_text("")
    assert folder_digest(first) == folder_digest(second)
    (second / "config.json").write_text('{"a": 1}')
    assert folder_digest(first) != folder_digest(second)


def test_a_renamed_file_is_another_model(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    (second / "config.json").rename(second / "generation_config.json")
    assert folder_digest(first) != folder_digest(second)


@pytest.mark.parametrize(
    "place", [0, 9, SMALL_FILE // 2, -1], ids=["length of the header", "header", "a window", "last byte"]
)
def test_a_large_file_differs_in_its_header_and_windows(tmp_path: Path, place: int) -> None:
    size = SMALL_FILE + 12345
    weights = bytearray((2000).to_bytes(8, "little") + bytes(size))
    before = folder_digest(checkpoint(tmp_path / "a", bytes(weights)))
    in_a_window = (len(weights) - WINDOW) * 31 // (WINDOWS - 1) + 5
    weights[place if place != SMALL_FILE // 2 else in_a_window] ^= 1
    assert folder_digest(checkpoint(tmp_path / "b", bytes(weights))) != before
    assert folder_digest(checkpoint(tmp_path / "c", bytes(weights) + b"\0")) not in (
        before,
        folder_digest(tmp_path / "b"),
    )


def test_files_in_linked_folders_count(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    (second / "llm").rename(tmp_path / "shared")
    (second / "llm").symlink_to(tmp_path / "shared")
    (tmp_path / "shared/back").symlink_to(second)
    assert folder_digest(first) == folder_digest(second)
    (tmp_path / "shared/model.safetensors").write_bytes(b"other weights")
    assert folder_digest(first) != folder_digest(second)


def test_a_file_that_changes_within_the_process_is_read_again(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    before = folder_digest(folder)
    file = folder / "llm" / "model.safetensors"
    file.write_bytes(b"WEIGHTS")  # of the same size
    os.utime(file, ns=(1, 1))
    assert folder_digest(folder) != before


def test_an_adapter_makes_another_model(tmp_path: Path) -> None:
    base, adapter = checkpoint(tmp_path / "base"), checkpoint(tmp_path / "adapter", b"low rank")
    plain = model_identity(ModelOptions(str(base)))
    adapted = model_identity(ModelOptions(str(base), lora=str(adapter)))
    assert (plain.name, adapted.name) == ("base", "adapter")
    assert plain.digest != adapted.digest
    assert model_name(ModelOptions(str(base) + "/", name="mine")) == "mine"
    assert model_name(ModelOptions("owner/NVILA-8B")) == "NVILA-8B"
    assert model_name(ModelOptions()) == "vila-tiny"
    with pytest.raises(CheckpointError, match="No folder"):
        model_identity(ModelOptions(str(tmp_path / "missing")))


def test_a_files_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    PIL.Image.new("RGB", (4, 4), (255, 0, 0)).save(picture)
    expected = hashlib.sha256(picture.read_bytes()).hexdigest()
    assert (
        media_digest(Image(picture))
        == media_digest(Image(str(picture)))
        == media_digest(Image(picture.read_bytes()))
        == expected
    )
    assert media_digest(Image(tmp_path / "missing.png")) is None


def test_a_loaded_videos_digest_is_of_its_frames() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    video = Video(frames).load(2)
    assert media_digest(Video(video)) == media_digest(Video(video)) is not None
    assert media_digest(Video(video)) != media_digest(Video(Video(frames[::-1]).load(2)))


def test_digests_of_pixels_and_frames(tmp_path: Path) -> None:
    dark, light = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 9, np.uint8)
    assert media_digest(Image(dark)) == media_digest(Image(dark.copy()))
    different = [
        Image(dark),
        Image(light),
        Image(dark.reshape(6, 4, 3)),
        Video([dark, light]),
        Video([light, dark]),
        Video([dark]),
    ]
    assert len({media_digest(medium) for medium in different}) == len(different)
    for name, frame in (("1.png", dark), ("2.png", light)):
        PIL.Image.fromarray(frame).save(tmp_path / name)
    before = media_digest(Video(tmp_path))
    assert before is not None
    PIL.Image.fromarray(light).save(tmp_path / "3.png")
    assert media_digest(Video(tmp_path)) not in (None, before)


def test_a_prompt_is_described_without_its_media() -> None:
    text, video = describe_prompt(["What moves?", None, Video(np.zeros((2, 4, 4, 3), np.uint8), frames=8)])
    assert (text.kind, text.text) == ("text", "What moves?")
    assert (video.kind, video.frames, video.text) == ("video", 8, None)


def test_the_key_changes_with_whatever_changes_the_answer() -> None:
    task = Task("shapes", LocalFiles("shapes.jsonl", {}), lambda row: Question("1", []), None)
    picture = Image(np.zeros((4, 4, 3), np.uint8))
    other = Image(np.ones((4, 4, 3), np.uint8))

    def key(
        model: str = "m",
        version: int = 1,
        settings: RunSettings = SETTINGS,
        *,
        prompt: list[str | Image | Video | None],
    ) -> str:
        changed = Task("shapes", task.source, task.ask, None, version=version)
        return sample_key(model, changed, settings, describe_prompt(prompt))

    video = np.zeros((4, 4, 4, 3), np.uint8)
    keys = [
        key(prompt=[picture, "a"]),
        key(prompt=["a", picture]),
        key(prompt=[picture, "b"]),
        key(prompt=[other, "a"]),
        key("n", prompt=[picture, "a"]),
        key(version=2, prompt=[picture, "a"]),
        key(settings=RunSettings(max_new_tokens=9), prompt=[picture, "a"]),
        key(settings=RunSettings(max_new_tokens=8, stop=("\n",)), prompt=[picture, "a"]),
        key(settings=RunSettings(max_new_tokens=8, max_tiles=6), prompt=[picture, "a"]),
        key(settings=RunSettings(max_new_tokens=8, chat_template="vicuna_v1"), prompt=[picture, "a"]),
        key(prompt=[Video(video, frames=2), "a"]),
        key(prompt=[Video(video, frames=4), "a"]),
    ]
    assert len(set(keys)) == len(keys)
    assert key(settings=RunSettings(max_new_tokens=8, limit=5), prompt=[picture, "a"]) == keys[0]
