"""What a second question about the same picture or video does not compute again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import pytest

import vila_core as vila
from vila_core import loaded_model
from vila_core.engine.media import MediaEmbeddings
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import PromptError
from vila_core.model import VilaModel
from vila_core.prepared_videos import PreparedVideo, PreparedVideos

NOISE = np.random.default_rng(0)


@pytest.fixture
def model() -> vila.Vila:
    return vila.load("vila-tiny", device="cpu")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts of media each call of the vision tower gets."""
    calls: list[int] = []
    tile_tokens = VilaModel.tile_tokens

    def count(self: VilaModel, tiles: Sequence[Any], *at_once: int) -> Any:
        calls.append(len(tiles))
        return tile_tokens(self, tiles, *at_once)

    monkeypatch.setattr(VilaModel, "tile_tokens", count)
    return calls


def picture(seed: int) -> vila.Image:
    return vila.Image(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def test_a_picture_is_encoded_once(model: vila.Vila, encoded: list[int]) -> None:
    for question in ("What is it?", "Which color is it?", "Where is it?"):
        model.generate([picture(1), question], max_new_tokens=4)
    assert encoded == [1]
    model.generate([picture(2), "What is it?"], max_new_tokens=4)
    assert encoded == [1, 1]


def test_pictures_of_a_batch_are_encoded_together_and_each_once(model: vila.Vila, encoded: list[int]) -> None:
    model.generate_batch([[picture(seed % 3), f"Question {seed}?"] for seed in range(7)], max_new_tokens=4)
    assert encoded == [3]


@pytest.fixture
def beside_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode pictures while prompts are prepared, as on a GPU."""
    monkeypatch.setattr(loaded_model, "_works_beside_the_host", lambda device: True)


@pytest.mark.usefixtures("beside_the_host")
def test_a_picture_that_is_encoded_early_is_encoded_once(model: vila.Vila, encoded: list[int]) -> None:
    for question in ("What is it?", "Which color is it?"):
        model.generate([picture(1), question], max_new_tokens=4)
    assert encoded == [1]
    list(model.stream([picture(2), "What is it?"], max_new_tokens=4))
    assert encoded == [1, 1]
    model.generate([picture(3), picture(4), picture(3), "What are these?"], max_new_tokens=4)
    assert encoded == [1, 1, 3]
    model.generate_batch([[picture(seed), "What is it?"] for seed in (5, 6)], max_new_tokens=4)
    assert encoded == [1, 1, 3, 2], "pictures of several prompts are encoded together"


@pytest.mark.usefixtures("beside_the_host")
def test_answers_do_not_depend_on_when_pictures_are_encoded(model: vila.Vila, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[picture(7), "?"], [picture(8), picture(7), "Compare."], ["Hello!"], [picture(7), "Say more."]]
    early = [model.generate(prompt, max_new_tokens=8) for prompt in prompts]
    monkeypatch.undo()
    late = vila.load("vila-tiny", device="cpu")
    assert [late.generate(prompt, max_new_tokens=8) for prompt in prompts] == early


@pytest.mark.usefixtures("beside_the_host")
def test_nothing_is_encoded_early_beside_other_answers(model: vila.Vila, encoded: list[int]) -> None:
    waiting = model.submit([picture(1), "Describe it."], GenerationConfig(max_new_tokens=4))
    with mock.patch.object(MediaEmbeddings, "begin") as begin:
        model.generate([picture(2), "What is it?"], max_new_tokens=2)
        assert not begin.called
    assert waiting.result().token_ids
    assert sum(encoded) == 2


@pytest.mark.usefixtures("beside_the_host")
def test_prompts_that_end_before_the_engine_lose_nothing(model: vila.Vila, encoded: list[int]) -> None:
    expected = vila.load("vila-tiny", device="cpu").generate([picture(1), "What is it?"], max_new_tokens=4)
    encoded.clear()
    with pytest.raises(PromptError):
        model.generate([picture(1), "word " * 40_000], max_new_tokens=4)
    with mock.patch.object(MediaEmbeddings, "begin", side_effect=RuntimeError("out of memory")):
        assert model.generate([picture(1), "What is it?"], max_new_tokens=4) == expected
    assert encoded == [1, 1]


def test_the_tokens_used_longest_ago_go(encoded: list[int]) -> None:
    model = vila.load("vila-tiny", device="cpu")
    (kept,) = model.network.encode(model.prepare([picture(0), "?"]).media)
    small = vila.load("vila-tiny", device="cpu", engine=vila.EngineConfig(media_cache_bytes=2 * kept.nbytes))
    encoded.clear()
    for seed in (0, 1, 0, 2, 0, 1):
        small.generate([picture(seed), "?"], max_new_tokens=1)
    assert len(encoded) == 4  # 0, 1, 2, and 1 again


def test_answers_do_not_depend_on_what_is_kept(model: vila.Vila) -> None:
    prompts = [[picture(seed % 4), f"Say {seed}."] for seed in range(8)]
    forgets = vila.EngineConfig(shares_prefixes=False, media_cache_bytes=0)
    fresh = [vila.load("vila-tiny", device="cpu", engine=forgets).generate(one, max_new_tokens=12) for one in prompts]
    assert [model.generate(prompt, max_new_tokens=12) for prompt in prompts] == fresh
    assert model.generate_batch(prompts, max_new_tokens=12) == fresh


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    """An animated GIF of eight frames."""
    path = tmp_path / "movie.gif"
    frames = [PIL.Image.fromarray(NOISE.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(8)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def test_a_video_file_is_decoded_once(model: vila.Vila, movie: Path, encoded: list[int]) -> None:
    with mock.patch.object(vila.Video, "load", autospec=True, side_effect=vila.Video.load) as load:
        first = model.complete([vila.Video(movie), "What happens?"], max_new_tokens=4)
        again = model.complete([vila.Video(movie), "What happens?"], max_new_tokens=4)
        model.generate([vila.Video(movie.read_bytes()), "What happens?"], max_new_tokens=4)
        model.generate([vila.Video(movie.read_bytes()), "And then?"], max_new_tokens=4)
    assert load.call_count == 2
    assert encoded == [1]
    assert first.token_ids == again.token_ids
    assert again.usage.cached_tokens > 0


def test_a_file_that_changed_is_read_again(model: vila.Vila, movie: Path, tmp_path: Path) -> None:
    model.generate([vila.Video(movie), "?"], max_new_tokens=1)
    key = vila.Video(movie).content_key()
    movie.write_bytes(movie.read_bytes() + b"\0")
    assert vila.Video(movie).content_key() != key
    assert vila.Video(movie, frames=3).content_key() != vila.Video(movie).content_key()
    with mock.patch.object(vila.Video, "load", autospec=True, side_effect=vila.Video.load) as load:
        model.generate([vila.Video(movie), "?"], max_new_tokens=1)
    assert load.call_count == 1


def test_videos_without_a_key(tmp_path: Path) -> None:
    frames = NOISE.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for source in (frames, list(frames), "https://example.com/a.mp4", tmp_path, tmp_path / "missing.mp4", "a\0b"):
        assert vila.Video(source).content_key() is None


def test_the_videos_used_longest_ago_go() -> None:
    prepared = {}
    for number in range(3):
        medium = mock.Mock()
        medium.tiles.values.nbytes = 40
        prepared[number] = PreparedVideo(medium, None)
    videos = PreparedVideos(100)
    for number, one in prepared.items():
        videos.keep(vila.Video(bytes([number])), one)
    assert [videos.get(vila.Video(bytes([number]))) for number in range(3)] == [None, prepared[1], prepared[2]]
    videos.get(vila.Video(b"\1"))
    videos.keep(vila.Video(b"\0"), prepared[0])
    assert videos.get(vila.Video(b"\2")) is None
    assert videos.get(vila.Video(b"\1")) is prepared[1]
    PreparedVideos(10).keep(vila.Video(b"\0"), prepared[0])
