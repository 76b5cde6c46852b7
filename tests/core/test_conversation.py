"""What users may write as a prompt: texts, media of many types, and the messages of other chat APIs."""

import base64
import io
import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import vila_core as vila
from vila_core.conversation import as_messages
from vila_core.errors import MediaError, PromptError, VilaWarning

SCENE = Path(__file__).parents[2] / "examples" / "media" / "scene.png"
VIDEO = SCENE.with_name("motion.mp4")
PICTURE = PIL.Image.new("RGB", (6, 4), "red")
PIXELS = np.asarray(PICTURE)


def png() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


BASE64 = base64.b64encode(png()).decode()
DATA_URI = f"data:image/png;base64,{BASE64}"


def only_part(prompt: Any) -> Any:
    (message,) = as_messages(prompt)
    assert message.role == "user"
    (part,) = message.content
    return part


@pytest.mark.parametrize(
    "part", [PICTURE, PIXELS, Path(SCENE), PIXELS[..., 0], PICTURE.convert("RGBA"), PICTURE.convert("L")]
)
def test_pictures_of_other_types_are_images(part: object) -> None:
    for prompt in (part, [part], (part,)):
        found = only_part(prompt)
        assert isinstance(found, vila.Image)
        assert found.load().size == vila.Image(part).load().size  # pyright: ignore


@pytest.mark.parametrize("part", [Path(VIDEO), np.stack([PIXELS] * 3)], ids=["path", "array"])
def test_videos_of_other_types_are_videos(part: object) -> None:
    assert isinstance(only_part([part]), vila.Video)


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "1.png")
    assert isinstance(only_part([tmp_path]), vila.Video)


def test_mixed_parts_keep_their_order() -> None:
    (message,) = as_messages(["first", PICTURE, "then", Path(VIDEO), {"type": "text", "text": "last"}, PIXELS])
    assert [type(part).__name__ for part in message.content] == ["str", "Image", "str", "Video", "str", "Image"]


def test_a_missing_file_given_as_a_path_is_named() -> None:
    with pytest.raises(MediaError, match=r"nothing\.png"):
        only_part([Path("nothing.png")]).load()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "contains None"),
        ([None], "contains None"),
        (5, r"not int.*str\(number\)"),
        (["what is", 5], r"not int.*str\(number\)"),
        ([["a", PICTURE], ["b"]], "not list.*flat list; generate_batch"),
        (b"bytes", r"not bytes.*Image\(data\)"),
        ([torch.zeros(3, 4, 4)], r"not torch\.Tensor.*cpu\(\)\.numpy\(\)"),
        (torch.zeros(3, 4, 4), r"not torch\.Tensor"),
        ([object()], "not object"),
        ({"a", "b"}, "a set has no order"),
        (itertools.repeat("again"), "more than 100,000 parts"),
        (["hi", vila.Message("user", "hi")], "not both"),
        (["hi", {"role": "user", "content": "hi"}], "not both"),
        ([{"role": "user"}], "has the keys 'role' and 'content', not 'role'"),
        ([{"from": "human", "value": "hi"}], "has the keys 'role' and 'content', not 'from', 'value'"),
        ([{"role": "human", "content": "hi"}], "Unknown role 'human'"),
        ([{"role": ["user"], "content": "hi"}], "Unknown role"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "Unknown type of content part 'audio'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has no image: put it under 'image'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"detail": "low"}}]}], r"as \{'url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "needs a 'text'"),
        ([{"role": "user", "content": [{"kind": "text"}]}], "needs a 'type'"),
        ([{}], "needs a 'type'"),
        ([{"role": "user", "content": ""}], "empty"),
        ([{"role": "user", "content": None}], "empty"),
        ([{"role": "user", "content": 5}], "not int"),
    ],
)
def test_errors_fit_what_was_given(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        as_messages(prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": PICTURE},
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": str(SCENE)},
        {"type": "image", "image": f"file://{SCENE}"},
        {"type": "image", "image": png()},
        {"type": "image", "url": str(SCENE)},
        {"type": "image", "path": str(SCENE)},
        {"type": "image", "path": SCENE},
        {"type": "image", "base64": BASE64},
        {"type": "image", "base64": DATA_URI},
        {"type": "image_url", "image_url": {"url": DATA_URI}},
        {"type": "image_url", "image_url": {"url": DATA_URI, "detail": "high"}},
        {"type": "image_url", "image_url": DATA_URI},
        {"type": "input_image", "image_url": DATA_URI},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"image": PICTURE},
    ],
)
def test_pictures_of_content_parts(part: dict[str, object]) -> None:
    found = only_part([{"role": "user", "content": [part]}])
    assert isinstance(found, vila.Image)
    assert found.load().width in (6, vila.Image(SCENE).load().width)


def test_urls_of_content_parts_are_not_fetched_before_they_are_needed() -> None:
    found = only_part([{"role": "user", "content": [{"type": "image", "url": "https://example.org/cat.png"}]}])
    assert found.source == "https://example.org/cat.png"


@pytest.mark.parametrize(
    ("part", "frames", "fps"),
    [
        ({"type": "video", "video": str(VIDEO)}, None, None),
        ({"type": "video", "path": str(VIDEO), "nframes": 4}, 4, None),
        ({"type": "video", "video": str(VIDEO), "fps": 2.0}, None, 2.0),
        ({"type": "video_url", "video_url": {"url": f"file://{VIDEO}"}}, None, None),
        ({"type": "video", "video": [str(SCENE), PICTURE]}, None, None),
    ],
)
def test_videos_of_content_parts(part: dict[str, object], frames: int | None, fps: float | None) -> None:
    found = only_part([{"role": "user", "content": [part]}])
    assert isinstance(found, vila.Video)
    assert (found.frames, found.fps) == (frames, fps)
    assert found.load(2).frames


def test_a_conversation_of_dicts() -> None:
    messages = as_messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What color?"}]},
            {"role": "assistant", "content": "Red.", "refusal": None, "tool_calls": None},
            vila.Message("user", ["And this?", PICTURE]),
        ]
    )
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]
    assert [type(part).__name__ for part in messages[1].content] == ["Image", "str"]
    assert [type(part).__name__ for part in messages[3].content] == ["str", "Image"]


def test_one_message_dict_is_a_conversation() -> None:
    assert only_part({"role": "user", "content": "hi"}) == "hi"


def test_keys_without_effect_are_named() -> None:
    with pytest.warns(VilaWarning, match="'max_pixels' has no effect"):
        only_part([{"role": "user", "content": [{"type": "image", "image": PICTURE, "max_pixels": 100}]}])


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (str(SCENE), "vila_core.Image("),
        (f" {SCENE}\n", "pathlib.Path("),
        (str(VIDEO), "vila_core.Video("),
        ("https://example.org/cat.png", "the address of a media file"),
        ("https://example.org/walk.mp4?size=2", "vila_core.Video("),
        (DATA_URI, "a data: URI"),
    ],
    ids=lambda value: value[:40],
)
def test_a_text_that_names_a_media_file_is_warned_about(text: str, advice: str) -> None:
    with pytest.warns(VilaWarning, match=re.escape(advice)) as caught:
        as_messages([text, "What is in the picture?"])
    assert caught[0].filename == __file__, "the warning points at the user's line"


def test_a_text_that_names_a_folder_of_frames_is_warned_about(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "1.png")
    with pytest.warns(VilaWarning, match="existing media file"):
        as_messages([str(tmp_path), "What happens?"])


@pytest.mark.parametrize(
    "text",
    ["What is in scene.png?", "nothing.png", "examples", "", " ", "a\0b", "\udcff.png", "x" * 5000, __file__, "~", "/"],
    ids=lambda value: repr(value)[:30],
)
def test_other_texts_are_not_warned_about(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SCENE.parents[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_messages([text, "hi"])
