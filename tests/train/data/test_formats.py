"""MMC4, M3IT, FLAN, questions and videos with captions."""

import base64
from pathlib import Path
from typing import Any

import pytest
from tests.train.data.conftest import Open, outline, sample_error

from vila_train.data.formats.videos import CAPTION_QUESTION


def picture(folder: Path) -> str:
    return base64.b64encode((folder / "a.png").read_bytes()).decode()


def info(name: str, place: object, similarity: float = 0.3) -> dict[str, object]:
    return {"image_name": name, "matched_text_index": place, "matched_sim": similarity}


def document(*pictures: dict[str, object], texts: object = ("One.", "Two.", "Three.")) -> dict[str, object]:
    return {"text_list": list(texts) if isinstance(texts, tuple) else texts, "image_info": list(pictures)}


def test_mmc4(open_records: Open, folder: Path):
    source = open_records(document(info("a.png", 1), info("sub/c.png", 2), info("b.png", 0)))
    conversation = source[0]
    assert conversation.is_document
    assert outline(conversation, folder) == [
        ("assistant", ["<image b.png>", "\nOne.", "<image a.png>", "\nTwo.", "<image sub/c.png>", "\nThree."])
    ]


def test_mmc4_texts_without_pictures_are_joined_by_spaces(open_records: Open, folder: Path):
    source = open_records(document(info("a.png", 2), texts=("One <image>.", "Two.", "Three.", "Four.")))
    assert outline(source[0], folder)[0][1] == ["One <IMAGE>. Two.", "<image a.png>", "\nThree. Four."]


def test_mmc4_pictures_of_one_sentence(open_records: Open, folder: Path):
    source = open_records(document(info("a.png", 1), info("b.png", 1)))
    assert outline(source[0], folder)[0][1] == ["One.", "<image a.png>", "\n", "<image b.png>", "\nTwo. Three."]


@pytest.mark.parametrize(("choose", "kept"), [("first", [0, 1, 2, 3, 4, 5]), ("similarity", [2, 3, 4, 5, 6, 7])])
def test_mmc4_keeps_six_pictures(open_records: Open, folder: Path, choose: str, kept: list[int]):
    texts = tuple(f"S{n}." for n in range(8))
    pictures = [info("a.png", n, similarity=n / 10) for n in range(8)]
    source = open_records(document(*pictures, texts=texts), choose_images=choose)
    parts = outline(source[0], folder)[0][1]
    followed = [parts[place + 1].split()[0] for place, part in enumerate(parts) if part.startswith("<image")]
    assert followed == [f"S{n}." for n in kept]


def test_mmc4_limit(open_records: Open, folder: Path):
    source = open_records(document(info("a.png", 0), info("b.png", 1), info("b.png", 2)), max_images=1)
    assert outline(source[0], folder)[0][1] == ["<image a.png>", "\nOne. Two. Three."]


def test_mmc4_embedded_pictures(open_records: Open, folder: Path):
    source = open_records(document({"image_base64": picture(folder), "matched_text_index": 0}))
    image: Any = source[0].messages[0].content[0]  # pyright: ignore
    assert image.size == (8, 6)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (document(info("missing.png", 0)), "missing media file"),
        (document(info("../secret.png", 0)), "media outside its folder"),
        (document(info("https://example.org/a.png", 0)), "media is a URL"),
        (document({"matched_text_index": 0}), "missing media file"),
        (document({"image_base64": "???", "matched_text_index": 0}), "damaged picture"),
        (document({"image_base64": 7, "matched_text_index": 0}), "damaged picture"),
        (document(info("a.png", 3)), "damaged picture"),
        (document(info("a.png", -1)), "damaged picture"),
        (document(info("a.png", None)), "damaged picture"),
        (document(info("a.png", True)), "damaged picture"),
        (document(info("a.png", "0")), "damaged picture"),
        (document(info("a.png", 0), texts=()), "empty conversation"),
        (document(texts=(" ", "")), "empty conversation"),
        (document(texts="One."), "message is not a text"),
        (document(texts=("One.", None)), "message is not a text"),
        ({"text_list": ["One."], "image_info": None}, "damaged picture"),
        ({"text_list": ["One."], "image_info": [7]}, "damaged picture"),
        ({"text_list": ["x"] * 100_001, "image_info": []}, "too large"),
    ],
)
def test_bad_documents(open_records: Open, record: dict[str, object], reason: str):
    source = open_records(record, document(), format="mmc4")
    assert sample_error(source).reason == reason
    assert source[1].messages[0].content == ["One. Two. Three."]


def test_m3it(open_records: Open, folder: Path):
    record = {
        "instruction": "Describe it.",
        "inputs": " Now.",
        "outputs": "A cat.",
        "image_base64_str": [picture(folder)],
    }
    user, assistant = open_records(record)[0].messages
    image: Any
    image, question = user.content  # pyright: ignore
    assert (image.size, question, assistant.content) == ((8, 6), "Describe it. Now.", ["A cat."])
    for embedded in (None, [], picture(folder)):
        record = {"instruction": "Hi", "inputs": None, "outputs": "Ho", "image_base64_str": embedded}
        assert len(open_records(record)[0].messages[0].content) == (2 if embedded else 1)  # pyright: ignore


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "Hi", "outputs": "Ho", "image_base64_str": "???"}, "damaged picture"),
        ({"instruction": "Hi", "outputs": "Ho", "image_base64_str": [7]}, "damaged picture"),
        ({"instruction": "Hi", "outputs": "Ho", "image_base64_str": {"a": 1}}, "damaged picture"),
        ({"instruction": None, "outputs": "Ho"}, "message is not a text"),
        ({"instruction": "Hi", "outputs": 3}, "message is not a text"),
        ({"instruction": "Hi", "outputs": ["Ho"]}, "message is not a text"),
        ({"instruction": "Hi", "outputs": ""}, "empty message"),
        ({"instruction": "", "inputs": "", "outputs": "Ho"}, "empty message"),
        ({"instruction": "<image>", "outputs": "Ho"}, "empty message"),
        ({"instruction": "Hi", "inputs": 4, "outputs": "Ho"}, "message is not a text"),
        ({"outputs": "Ho"}, "message is not a text"),
    ],
)
def test_bad_m3it(open_records: Open, record: dict[str, object], reason: str):
    assert sample_error(open_records(record, format="m3it")).reason == reason


def test_flan(open_records: Open, folder: Path):
    source = open_records({"inputs": "Write <image>.", "targets": "Fine.", "task": "x"})
    assert outline(source[0], folder) == [("user", ["Write <IMAGE>."]), ("assistant", ["Fine."])]


@pytest.mark.parametrize(
    "record",
    [{"inputs": None, "targets": "x"}, {"inputs": "x", "targets": None}, {"inputs": "x"},
     {"inputs": "", "targets": "x"},
     {"inputs": "x", "targets": " "}, {"inputs": ["x"], "targets": "y"}, {"inputs": 1, "targets": 2}],
)  # fmt: skip
def test_bad_flan(open_records: Open, record: dict[str, object]):
    assert sample_error(open_records(record, format="flan")).reason in ("message is not a text", "empty message")


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"question": "What?", "answer": "Yes.", "image": "a.png"}, ["<image a.png>", "What?"]),
        (
            {"prompt": "What?", "answer": "Yes.", "images": ["a.png", "b.png"]},
            ["<image a.png>", "<image b.png>", "What?"],
        ),
        ({"question": "In <image> there?", "answer": "Yes.", "image": "a.png"}, ["In ", "<image a.png>", " there?"]),
        ({"question": "What?", "answer": "Yes.", "video": "v.mp4"}, ["<video v.mp4>", "What?"]),
        ({"question": "What?", "answer": "Yes."}, ["What?"]),
    ],
)
def test_questions(open_records: Open, folder: Path, record: dict[str, object], parts: list[str]):
    assert outline(open_records(record)[0], folder) == [("user", parts), ("assistant", ["Yes."])]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "What?", "answer": None}, "message is not a text"),
        ({"question": None, "answer": "x"}, "message is not a text"),
        ({"question": "<image>", "answer": "x"}, "more placeholders than media"),
        ({"question": "What?", "answer": "", "image": "a.png"}, "empty message"),
        ({"question": "What?", "answer": "x", "image": "none.png"}, "missing media file"),
        ({"question": "What?", "answer": "x", "image": "/etc/hostname"}, "media outside its folder"),
        ({"answer": "x"}, "message is not a text"),
    ],
)
def test_bad_questions(open_records: Open, record: dict[str, object], reason: str):
    assert sample_error(open_records(record, format="qa")).reason == reason


def test_texts(open_records: Open, folder: Path):
    pairs = [{"user": "What?", "assistant": "A cat."}, {"user": "And?", "assistant": "A dog."}]
    found = outline(open_records({"texts": pairs, "images": ["a.png"]})[0], folder)
    assert found[0] == ("user", ["<image a.png>", "What?"])
    assert [role for role, _ in found] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"video_id": "v", "captions": [{"idx": "1", "content": "x"}, {"idx": "-1", "content": "All."}]},
         CAPTION_QUESTION, "All."),
        ({"video_id": "v", "captions": [{"idx": -1, "content": "All."}]}, CAPTION_QUESTION, "All."),
        ({"video_path": "v.mp4", "captions": [{"idx": "-1", "content": "All."}]}, CAPTION_QUESTION, "All."),
        ({"video_id": "v", "q": "What?", "a": "A box."}, "What?", "A box."),
        ({"video": "v.mp4", "caption": "All."}, CAPTION_QUESTION, "All."),
    ],
)  # fmt: skip
def test_videos(open_records: Open, folder: Path, record: dict[str, object], question: str, answer: str):
    source = open_records(record, media_suffix=".mp4")
    assert outline(source[0], folder) == [("user", ["<video v.mp4>", question]), ("assistant", [answer])]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"video_id": "none", "q": "x", "a": "y"}, "missing media file"),
        ({"video_id": "../secret.png", "q": "x", "a": "y"}, "media outside its folder"),
        ({"q": "x", "a": "y"}, "missing media file"),
        ({"video_id": 7, "q": "x", "a": "y"}, "media name is not a text"),
        ({"video_id": "v.mp4", "q": "x"}, "message is not a text"),
        ({"video_id": "v.mp4", "q": "x", "a": None}, "message is not a text"),
        ({"video_id": "v.mp4", "captions": []}, "no answer"),
        ({"video_id": "v.mp4", "captions": [{"idx": "1", "content": "x"}]}, "no answer"),
        ({"video_id": "v.mp4", "captions": "x"}, "no answer"),
        ({"video_id": "v.mp4", "captions": [{"idx": "-1"}]}, "message is not a text"),
        ({"video_id": "v.mp4", "captions": [{"idx": "-1", "content": ""}]}, "empty message"),
        ({"video_id": "v.mp4", "q": "x", "a": "y", "frames": 0}, "frames or fps out of range"),
        ({"video_id": "v.mp4", "q": "x", "a": "y", "fps": "nan"}, "frames or fps out of range"),
        ({"video_id": "https://example.org/v.mp4", "q": "x", "a": "y"}, "media is a URL"),
    ],
)
def test_bad_videos(open_records: Open, record: dict[str, object], reason: str):
    assert sample_error(open_records(record, format="video")).reason == reason
