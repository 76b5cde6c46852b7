"""LLaVA's conversations: where media go, and samples that cannot be used."""

import json
from pathlib import Path

import pytest
from tests.train.data.conftest import Open, outline, sample_error

from vila_core.media import Video

Turn = dict[str, object]


def human(value: object) -> Turn:
    return {"from": "human", "value": value}


def gpt(value: object = "Yes.") -> Turn:
    return {"from": "gpt", "value": value}


ANSWER = ("assistant", ["Yes."])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image>\nWhat?", ["<image a.png>", "What?"]),
        ("What?\n<image>", ["<image a.png>", "What?"]),
        ("<image>What?", ["<image a.png>", "What?"]),
        ("What?", ["<image a.png>", "What?"]),
        ("<image>", ["<image a.png>", ""]),
        ("  <image> \n What? ", ["<image a.png>", "What?"]),
        ("Look: <image> nice?", ["Look: ", "<image a.png>", " nice?"]),
        ("<video>\nWhat?", ["<image a.png>", "What?"]),
    ],
)
def test_one_image(open_records: Open, folder: Path, text: str, parts: list[str]):
    source = open_records({"image": "a.png", "conversations": [human(text), gpt()]})
    assert outline(source[0], folder) == [("user", parts), ANSWER]


@pytest.mark.parametrize(
    ("placement", "parts"),
    [
        ("auto", ["<image a.png>", " is before, ", "<image b.png>", " is after."]),
        ("in_place", ["<image a.png>", " is before, ", "<image b.png>", " is after."]),
        ("first", ["<image a.png>", "<image b.png>", "is before,  is after."]),
    ],
)
def test_placement(open_records: Open, folder: Path, placement: str, parts: list[str]):
    record = {"image": ["a.png", "b.png"], "conversations": [human("<image> is before, <image> is after."), gpt()]}
    assert outline(open_records(record, placement=placement)[0], folder)[0] == ("user", parts)


def test_several_images_before_the_question(open_records: Open, folder: Path):
    record = {"images": ["a.png", "b.png"], "conversations": [human("<image>\n<image>\nCompare."), gpt()]}
    assert outline(open_records(record)[0], folder)[0] == ("user", ["<image a.png>", "<image b.png>", "Compare."])


def test_images_of_later_turns_stay_there(open_records: Open, folder: Path):
    turns = [human("<image>\nWhat?"), gpt("A cat."), human("And <image>?"), gpt("A dog.")]
    record = {"image": ["a.png", "sub/c.png"], "conversations": turns}
    assert outline(open_records(record)[0], folder) == [
        ("user", ["<image a.png>", "\nWhat?"]),
        ("assistant", ["A cat."]),
        ("user", ["And ", "<image sub/c.png>", "?"]),
        ("assistant", ["A dog."]),
    ]


def test_system_message_and_other_names_of_roles(open_records: Open, folder: Path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "<image>\nHi"},
        {"from": "assistant", "value": "Hello"},
    ]
    found = outline(open_records({"image": "a.png", "conversations": turns})[0], folder)
    assert [role for role, _ in found] == ["system", "user", "assistant"]
    assert found[1][1] == ["<image a.png>", "Hi"]


def test_text_only_and_null_media(open_records: Open, folder: Path):
    source = open_records(
        {"conversations": [human("Hi"), gpt()]},
        {"image": None, "video": None, "conversations": [human("Hi"), gpt()]},
        {"image": [], "conversations": [human("Hi"), gpt()]},
    )
    assert [outline(source[index], folder) for index in range(3)] == [[("user", ["Hi"]), ANSWER]] * 3


@pytest.mark.parametrize("token", ["<video>", "<image>", ""])
def test_videos(open_records: Open, folder: Path, token: str):
    record = {"video": "v.mp4", "frames": 4, "fps": 2, "conversations": [human(f"{token}\nWhat?"), gpt()]}
    source = open_records(record)
    assert outline(source[0], folder)[0] == ("user", ["<video v.mp4>", "What?"])
    video = source[0].messages[0].content[0]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert isinstance(video, Video)
    assert (video.frames, video.fps) == (4, 2.0)


def test_rate_of_the_file_is_not_a_sampling_rate(open_records: Open):
    record = {"video": "v.mp4", "fps": 29.97, "frame_count": 900, "conversations": [human("What?"), gpt()]}
    video = open_records(record)[0].messages[0].content[0]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert isinstance(video, Video)
    assert video.fps is None


def test_frames_of_a_video(open_records: Open, folder: Path):
    names = ["frames/0.png", "frames/1.png"]
    source = open_records(
        {"video": "frames", "conversations": [human("<video>\nWhat?"), gpt()]},
        {"video": names, "conversations": [human("<video>\nWhat?"), gpt()]},
    )
    assert outline(source[0], folder)[0][1] == ["<video frames>", "What?"]
    video = source[1].messages[0].content[0]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert isinstance(video, Video)
    assert len(video.load(8).frames) == 2


def test_suffix_of_media(open_records: Open, folder: Path):
    source = open_records({"video": "v", "conversations": [human("What?"), gpt()]}, media_suffix=".mp4")
    assert outline(source[0], folder)[0][1][0] == "<video v.mp4>"


def test_absolute_path_inside_the_folder(open_records: Open, folder: Path):
    names = [str(folder / "a.png"), "sub/../b.png", "./sub//c.png"]
    source = open_records({"image": names, "conversations": [human("What?"), gpt()]})
    assert outline(source[0], folder)[0][1][:3] == ["<image a.png>", "<image b.png>", "<image sub/c.png>"]


QUESTION = [human("<image>\nWhat?"), gpt()]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "missing.png", "conversations": QUESTION}, "missing media file"),
        ({"image": "", "conversations": QUESTION}, "media name is impossible"),
        ({"image": "a.png\0", "conversations": QUESTION}, "damaged JSON"),
        ({"image": "../secret.png", "conversations": QUESTION}, "media outside its folder"),
        ({"image": "sub/../../secret.png", "conversations": QUESTION}, "media outside its folder"),
        ({"image": "/etc/passwd", "conversations": QUESTION}, "media outside its folder"),
        ({"image": "..", "conversations": QUESTION}, "media outside its folder"),
        ({"image": ".", "conversations": QUESTION}, "missing media file"),
        ({"image": "https://example.org/a.png", "conversations": QUESTION}, "media is a URL"),
        ({"image": "HTTP://example.org/a.png", "conversations": QUESTION}, "media is a URL"),
        ({"image": "file:///etc/passwd", "conversations": QUESTION}, "media outside its folder"),
        ({"image": "s3://bucket/a.png", "conversations": QUESTION}, "media is a URL"),
        ({"image": "~/a.png", "conversations": QUESTION}, "missing media file"),
        ({"image": "sub\\c.png", "conversations": QUESTION}, "missing media file"),
        ({"image": "x" * 5000, "conversations": QUESTION}, "missing media file"),
        ({"image": 7, "conversations": QUESTION}, "media name is not a text"),
        ({"image": {"uri": "a.png"}, "conversations": QUESTION}, "media name is not a text"),
        ({"image": [["a.png"]], "conversations": QUESTION}, "media name is not a text"),
        ({"image": ["a.png"] * 5000, "conversations": QUESTION}, "too many media"),
        ({"conversations": QUESTION}, "more placeholders than media"),
        ({"image": "a.png", "conversations": [human("<image><image>"), gpt()]}, "more placeholders than media"),
        ({"image": ["a.png", "b.png"], "conversations": QUESTION}, "more media than placeholders"),
        ({"image": "a.png", "video": "v.mp4", "conversations": QUESTION}, "more media than placeholders"),
        ({"image": "a.png", "conversations": [human("<image>\nHi"), gpt("<image>")]}, "more placeholders than media"),
        ({"conversations": []}, "empty conversation"),
        ({"conversations": None}, "no messages"),
        ({"conversations": "Hi"}, "no messages"),
        ({"conversations": {"from": "human", "value": "Hi"}}, "no messages"),
        ({"conversations": ["Hi", "Yes."]}, "no messages"),
        ({"conversation": QUESTION}, "no messages"),
        ({"conversations": [{"from": "alien", "value": "Hi"}, gpt()]}, "unknown role"),
        ({"conversations": [{"from": "Human", "value": "Hi"}, gpt()]}, "unknown role"),
        ({"conversations": [{"from": None, "value": "Hi"}, gpt()]}, "unknown role"),
        ({"conversations": [{"from": ["human"], "value": "Hi"}, gpt()]}, "unknown role"),
        ({"conversations": [{"role": "user", "content": "Hi"}]}, "unknown role"),
        ({"conversations": [{}]}, "unknown role"),
        ({"video": [["a.png", "nope.png"]], "conversations": [human("?"), gpt()]}, "missing media file"),
        ({"conversations": [gpt(), human("Hi")]}, "does not start with the user"),
        ({"conversations": [{"from": "system", "value": "x"}, gpt()]}, "does not start with the user"),
        ({"conversations": [human("Hi"), human("Ho"), gpt()]}, "user and assistant do not take turns"),
        ({"conversations": [human("Hi"), gpt(), gpt()]}, "user and assistant do not take turns"),
        ({"conversations": [human("Hi"), {"from": "system", "value": "x"}]}, "user and assistant do not take turns"),
        ({"conversations": [human("Hi")]}, "no answer"),
        ({"conversations": [human(""), gpt()]}, "empty message"),
        ({"conversations": [human(" \n"), gpt()]}, "empty message"),
        ({"conversations": [human("Hi"), gpt("")]}, "empty message"),
        ({"conversations": [human("Hi"), gpt(None)]}, "message is not a text"),
        ({"conversations": [human("Hi"), gpt(42)]}, "message is not a text"),
        ({"conversations": [human(["Hi"]), gpt()]}, "message is not a text"),
        ({"conversations": [{"from": "human"}, gpt()]}, "message is not a text"),
        ({"video": "v.mp4", "frames": 0, "conversations": [human("?"), gpt()]}, "frames or fps out of range"),
        ({"video": "v.mp4", "frames": 2.5, "conversations": [human("?"), gpt()]}, "frames or fps out of range"),
        ({"video": "v.mp4", "fps": -1, "conversations": [human("?"), gpt()]}, "frames or fps out of range"),
        ({"video": "v.mp4", "fps": "fast", "conversations": [human("?"), gpt()]}, "frames or fps out of range"),
    ],
)  # fmt: skip
def test_bad_samples(open_records: Open, record: dict[str, object], reason: str):
    source = open_records(record, {"conversations": [human("Hi"), gpt()]}, format="llava")
    assert sample_error(source).reason == reason
    assert source[1].name == "set/1", "the other samples are not affected"


@pytest.mark.parametrize("name", ["file://{}/sub/c%2Epng", "{}/sub/c.png", "sub/../sub/c.png"])
def test_paths_within_the_media_folder(open_records: Open, folder: Path, name: str):
    source = open_records({"image": name.format(folder), "conversations": QUESTION})
    assert outline(source[0], folder)[0][1][0] == "<image sub/c.png>"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": {"name": "a.png"}, "conversations": QUESTION}, "its image is {'name': 'a.png'}; expected"),
        ({"image": "/etc/hostname", "conversations": QUESTION}, "set its 'media' to a folder that holds the file"),
        ({"conversations": [{"role": "user", "content": "Hi"}]}, "has no 'from', which says who speaks, but 'role'"),
    ],
)
def test_messages_say_what_to_do(open_records: Open, record: dict[str, object], message: str):
    assert message in str(sample_error(open_records(record)))


def test_videos_are_lists_of_pictures_too(open_records: Open, folder: Path):
    two = [["a.png", "b.png"], ["frames/0.png"]]
    source = open_records({"videos": two, "conversations": [human("<video><video>?"), gpt()]})
    first, second, _ = source[0].messages[0].content
    assert [first.source[0].source, second.source[0].source] == [str(folder / "a.png"), str(folder / "frames/0.png")]


def test_media_folder_of_the_registry(open_records: Open, folder: Path):
    source = open_records({"image": "c.png", "conversations": QUESTION}, media="sub")
    assert outline(source[0], folder)[0][1][0] == "<image sub/c.png>"
    assert sample_error(open_records({"image": "../a.png", "conversations": QUESTION}, media="sub")).reason == (
        "media outside its folder"
    )


def test_folder_whose_name_starts_like_the_media_folder(open_records: Open, folder: Path):
    (folder.parent / "data-private").mkdir()
    (folder.parent / "data-private" / "x.png").write_bytes(b"x")
    record = {"image": "../data-private/x.png", "conversations": QUESTION}
    assert sample_error(open_records(record)).reason == "media outside its folder"


def test_embedded_pictures(open_records: Open, folder: Path):
    import base64

    uri = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    image = open_records({"image": uri, "conversations": QUESTION})[0].messages[0].content[0]  # pyright: ignore
    assert image.size == (8, 6)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def test_the_reference_reads_the_same(open_records: Open, folder: Path):
    """Instances like those of the recorded training runs: media first, then the text (`LLaVADataset.process`)."""
    turns = [human("<image>\n<image>\nCompare the two images."), gpt("The first one is larger.")]
    record = json.loads(json.dumps({"id": "two", "image": ["a.png", "b.png"], "conversations": turns}))
    assert outline(open_records(record)[0], folder) == [
        ("user", ["<image a.png>", "<image b.png>", "Compare the two images."]),
        ("assistant", ["The first one is larger."]),
    ]
