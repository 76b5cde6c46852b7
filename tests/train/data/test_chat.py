"""Chat messages with media among their texts."""

import base64
from pathlib import Path

import pytest
from tests.train.data.conftest import Open, outline, sample_error

from vila_core.media import Video

ANSWER = {"role": "assistant", "content": "Yes."}
TEXT = {"type": "text", "text": "What?"}
IMAGE = {"type": "image", "image": "a.png"}


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"messages": [user(IMAGE, TEXT), ANSWER]}, ["<image a.png>", "What?"]),
        ({"messages": [user(TEXT, IMAGE), ANSWER]}, ["What?", "<image a.png>"]),
        ({"messages": [user({"type": "image_url", "image_url": {"url": "a.png"}}), ANSWER]}, ["<image a.png>"]),
        ({"messages": [user({"type": "image_url", "image_url": "a.png"}), ANSWER]}, ["<image a.png>"]),
        ({"messages": [user({"type": "image", "path": "a.png"}), ANSWER]}, ["<image a.png>"]),
        ({"messages": [user({"image": "a.png"}, {"text": "Hi"}), ANSWER]}, ["<image a.png>", "Hi"]),
        ({"messages": [user("Hi", IMAGE), ANSWER]}, ["Hi", "<image a.png>"]),
        ({"messages": [user({"type": "video", "video": "v.mp4"}, TEXT), ANSWER]}, ["<video v.mp4>", "What?"]),
        ({"messages": [user({"type": "image"}, TEXT), ANSWER], "images": ["a.png"]}, ["<image a.png>", "What?"]),
        (
            {"messages": [user({"type": "image", "index": 1, "text": None}, TEXT, {"type": "image", "index": 0}),
                          ANSWER],
             "images": ["a.png", "b.png"]},
            ["<image b.png>", "What?", "<image a.png>"],
        ),
        (
            {"messages": [user({"type": "image"}, {"type": "image"}, {"type": "video"}), ANSWER],
             "images": ["a.png", "b.png"], "videos": ["v.mp4"]},
            ["<image a.png>", "<image b.png>", "<video v.mp4>"],
        ),
        (
            {"messages": [{"role": "user", "content": "What? <image> Hm."}, ANSWER], "images": ["a.png"]},
            ["What? ", "<image a.png>", " Hm."],
        ),
        (
            {"messages": [{"role": "user", "content": "<image><video>Hm."}, ANSWER], "images": ["a.png"],
             "video": "v.mp4"},
            ["<image a.png>", "<video v.mp4>", "Hm."],
        ),
        ({"messages": [{"role": "user", "content": "Hi"}, ANSWER], "image": "a.png"}, ["<image a.png>", "Hi"]),
        ({"messages": [user({"type": "input_text", "text": "Hi"}), ANSWER]}, ["Hi"]),
        ({"messages": [user({**IMAGE, "resized_height": 280}), ANSWER]}, ["<image a.png>"]),
    ],
)  # fmt: skip
def test_messages(open_records: Open, folder: Path, record: dict[str, object], parts: list[str]):
    found = outline(open_records(record)[0], folder)
    assert found == [("user", parts), ("assistant", ["Yes."])]


def test_roles(open_records: Open, folder: Path):
    record = {"messages": [{"role": "developer", "content": "Be brief."}, user(TEXT), ANSWER, user(TEXT), ANSWER]}
    roles = [role for role, _ in outline(open_records(record)[0], folder)]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_options_of_a_video(open_records: Open):
    part = {"type": "video", "video": "v.mp4", "fps": 1.5, "nframes": 6}
    video = open_records({"messages": [user(part, TEXT), ANSWER]})[0].messages[0].content[0]  # pyright: ignore
    assert isinstance(video, Video)
    assert (video.frames, video.fps) == (6, 1.5)


def test_embedded_pictures(open_records: Open, folder: Path):
    text = base64.b64encode((folder / "a.png").read_bytes()).decode()
    for part in (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "image", "base64": text},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}},
    ):
        image = open_records({"messages": [user(part, TEXT), ANSWER]})[0].messages[0].content[0]  # pyright: ignore
        assert image.size == (8, 6)  # pyright: ignore


def part(**fields: object) -> dict[str, object]:
    return {"messages": [user(fields, TEXT), ANSWER]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (part(type="image", image="../secret.png"), "media outside its folder"),
        (part(type="image", image="/etc/passwd"), "media outside its folder"),
        (part(type="image_url", image_url={"url": "file:///etc/passwd"}), "media outside its folder"),
        (part(type="image_url", image_url={"url": "https://example.org/a.png"}), "media is a URL"),
        (part(type="video", video=["https://example.org/a.png", "a.png"]), "media is a URL"),
        (part(type="video", video=["../secret.png", "a.png"]), "media outside its folder"),
        (part(type="image", image="missing.png"), "missing media file"),
        (part(type="image", image=7), "damaged message part"),
        (part(type="image", path=["a.png"]), "damaged message part"),
        (part(type="audio", audio="a.wav"), "damaged message part"),
        (part(type="text"), "damaged message part"),
        (part(type="text", text=["x"]), "damaged message part"),
        (part(type=7, text="x"), "damaged message part"),
        (part(nothing=1), "damaged message part"),
        (part(type="image"), "more placeholders than media"),
        ({**part(type="image"), "images": []}, "more placeholders than media"),
        ({**part(type="image", index=3), "images": ["a.png"]}, "more placeholders than media"),
        ({**part(type="image", index=-1), "images": ["a.png"]}, "more placeholders than media"),
        ({**part(type="image"), "images": ["a.png", "b.png"]}, "more media than placeholders"),
        ({**part(type="text", text="x"), "images": ["a.png"]}, "more media than placeholders"),
        ({"messages": [{"role": "user", "content": "<image>"}, ANSWER]}, "more placeholders than media"),
        ({"messages": [user(7), ANSWER]}, "message is not a text"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "message is not a text"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}, ANSWER]}, "message is not a text"),
        ({"messages": [{"role": "user"}, ANSWER]}, "message is not a text"),
        ({"messages": [user(), ANSWER]}, "empty message"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "unknown role"),
        ({"messages": [{"content": "x"}, ANSWER]}, "unknown role"),
        ({"messages": [ANSWER]}, "does not start with the user"),
        ({"messages": [user(TEXT)]}, "no answer"),
        ({"messages": []}, "empty conversation"),
        ({"messages": "Hi"}, "no messages"),
        ({"messages": [["user", "Hi"]]}, "no messages"),
        (part(type="video", video="v.mp4", nframes=0), "damaged message part"),
    ],
)  # fmt: skip
def test_bad_samples(open_records: Open, record: dict[str, object], reason: str):
    assert sample_error(open_records(record, format="chat")).reason == reason
