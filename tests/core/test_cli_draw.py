"""`vila-infer --generate`: files, and options that are wrong, which are found before a model loads."""

import json
from pathlib import Path

import av
import PIL.Image
import pytest

from vila_core.cli.infer import main
from vila_core.errors import OutputError
from vila_core.generation.files import SUFFIXES, output_paths, write_picture


def infer(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_several_images(tiny_u: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, preview = tmp_path / "picture.png", tmp_path / "preview.png"
    options = ("--generate", "image", "--seed", "1", "--preview", str(preview))
    assert infer("-m", str(tiny_u), "a snowy mountain", *options, "--out", str(out), "-n", "2") == 0
    assert capfd.readouterr().out.split() == [str(tmp_path / "picture_0.png"), str(tmp_path / "picture_1.png")]
    assert infer("-m", str(tiny_u), "a snowy mountain", *options, "--out", str(out)) == 0
    assert PIL.Image.open(out).tobytes() == PIL.Image.open(tmp_path / "picture_0.png").tobytes()
    assert PIL.Image.open(out).size == (64, 64)
    assert preview.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "picture.png", "picture_0.png", "picture_1.png", "preview.png",
    ]  # fmt: skip


def test_a_video(tiny_u: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fire.gif"
    assert infer("-m", str(tiny_u), "fire", "--generate", "video", "--out", str(out), "--json", "--cfg", "1") == 0
    record = json.loads(capfd.readouterr().out)
    assert (record["files"], record["guidance"]) == ([str(out)], 1)
    assert frames_of(out) == 8


@pytest.mark.parametrize("suffix", SUFFIXES["video"])
def test_videos_in_every_format(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"fire{suffix}"
    write_picture([PIL.Image.new("RGB", (63, 64), (30 * number, 0, 0)) for number in range(8)], out)
    assert frames_of(out) == 8


def frames_of(video: Path) -> int:
    if video.suffix == ".mp4":
        with av.open(str(video)) as container:
            return sum(1 for _ in container.decode(video=0))
    with PIL.Image.open(video) as image:
        return getattr(image, "n_frames", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a circle", "--generate", "image"], "--out FILE"),
        (["a circle", "--out", "a.png"], "--generate image"),
        (["a circle", "--generate", "image", "--out", "missing/a.png"], "does not exist"),
        (["a circle", "--generate", "image", "--out", "a.bmp"], "Use one of .png"),
        (["a circle", "--generate", "image", "--out", "a"], "Use one of .png"),
        (["a circle", "--generate", "video", "--out", "a.png"], "Use one of .mp4"),
        (["a circle", "--generate", "image", "--out", "."], "suffix"),
        (["a circle", "--generate", "image", "--out", "folder.png"], "is a folder"),
        (["a circle", "--generate", "image", "--out", "a.png", "--preview", "missing/b.png"], "does not exist"),
        (["a circle", "--generate", "image", "--out", "a.png", "-n", "0"], "n is the number"),
        (["a circle", "--generate", "image", "--out", "a.png", "--guidance", "-1"], "'guidance'"),
        (["a circle", "--generate", "image", "--out", "a.png", "--temperature", "-1"], "'temperature'"),
        (["a circle", "--generate", "image", "--out", "a.png", "--explain"], "--explain"),
        (["a circle", "--generate", "image", "--out", "a.png", "--stop", "x"], "--stop is for answers"),
        (["a circle", "--generate", "image", "--out", "a.png", "-nf", "4"], "--num-video-frames is for answers"),
        (["a circle", "--guidance", "3"], "--guidance is for drawing"),
        (["a circle", "-n", "2"], "--count is for drawing"),
        (["a circle", "--preview", "b.png"], "--preview is for drawing"),
        (["  ", "--generate", "image", "--out", "a.png"], "Say what to draw|empty|question"),
        (["a circle", "--generate", "sound", "--out", "a.wav"], "sound"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_found_before_a_model_loads(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert infer("-m", "no-such-model", *arguments) == 2
    error = capfd.readouterr().err
    assert re.search(message, " ".join(error.replace("│", " ").split())), error
    assert "no-such-model" not in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.png"]


def test_an_existing_file_stays_until_the_picture_is_ready(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    assert output_paths(tmp_path / "old.png", "image", 1) == [tmp_path / "old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device")
def test_devices_are_not_replaced() -> None:
    with pytest.raises(OutputError, match="suffix"):
        output_paths(Path("/dev/null"), "image", 1)


def test_numbers_sort_by_name(tmp_path: Path) -> None:
    names = [path.name for path in output_paths(tmp_path / "a.webp", "image", 11)]
    assert names == sorted(names)
    assert names[0] == "a_00.webp"
