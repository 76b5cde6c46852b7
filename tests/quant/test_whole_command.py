"""`vila-quant awq` from its arguments to a model that answers: one's own calibration, and TinyChat's format."""

import json
import os
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from tests.quant.conftest import small_decoder, small_model, tensors_of
from torch import Tensor
from typer.testing import CliRunner

import vila_core as vila
from vila_core.checkpoint import convert, open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.errors import VilaError
from vila_quant.cli.main import app

QUICK = ["--search", "nearest", "--sequences", "1", "--device", "cpu"]


def quantize(out: Path, *arguments: str | Path, model: Path | None = None) -> Path:
    result = CliRunner().invoke(app, ["awq", str(model or embedded_model()), str(out), *QUICK, *map(str, arguments)])
    if isinstance(result.exception, VilaError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return out


def logits(path: Path) -> Tensor:
    """Return what follows a picture and a question."""
    model = vila.load(path, device="cpu")
    picture = PIL.Image.fromarray(np.random.default_rng(2).integers(0, 255, (60, 80, 3), np.uint8))
    prepared = model.prepare([vila.Message("user", [vila.Image(picture), "What is in the picture?"])])
    with torch.inference_mode():
        return model.network([prepared])[0]


def test_tinychat_and_awq_hold_the_same_model(tmp_path: Path) -> None:
    calibration = ["--calibration", "drawn-world", "--sequence-length", "64", "--search", "reference"]
    awq = quantize(tmp_path / "awq", *calibration)
    tinychat = quantize(tmp_path / "tinychat", *calibration, "--format", "tinychat")
    assert (tinychat / "llm" / "tinychat-w4-g128-awq-v2.pt").is_file()
    assert open_checkpoint(tinychat).format == "tinychat"
    expected = logits(awq)
    assert torch.equal(logits(tinychat), expected)
    assert not torch.equal(logits(embedded_model()), expected)

    there = convert(awq, tmp_path / "there", "tinychat")
    back = convert(tinychat, tmp_path / "back", "awq")
    for found, made in ((there, tinychat), (back, awq)):
        found_tensors, made_tensors = tensors_of(found), tensors_of(open_checkpoint(made))
        assert found_tensors.keys() == made_tensors.keys()
        assert [name for name, tensor in made_tensors.items() if not torch.equal(found_tensors[name], tensor)] == []
    assert torch.equal(logits(there.path), expected)
    assert torch.equal(logits(back.path), expected)


def test_an_nvila_model_becomes_tinychats(tmp_path: Path) -> None:
    sizes = small_decoder(hidden_size=128, intermediate_size=256, num_hidden_layers=1, head_dim=64)
    model = small_model(tmp_path / "whole", sizes, "nvila").path
    calibration = ["--calibration", "builtin", "--sequence-length", "64"]
    awq = quantize(tmp_path / "awq", *calibration, model=model)
    tinychat = quantize(tmp_path / "tinychat", *calibration, "--format", "tinychat", model=model)
    assert open_checkpoint(tinychat).format == "tinychat"
    assert torch.equal(logits(tinychat), logits(awq))


def write_picture(path: Path, seed: int) -> None:
    colors = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    PIL.Image.fromarray(colors).resize((80, 60), PIL.Image.Resampling.NEAREST).save(path)


def write_video(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(0, 240, 30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one with a prompt of its own, and a video; not to be changed."""
    folder = tmp_path_factory.mktemp("media")
    write_picture(folder / "a.png", 1)
    write_picture(folder / "b.png", 2)
    (folder / "b.txt").write_text("What color is the shape?\n")
    write_video(folder / "c.mp4")
    return folder


def calibrated(out: Path) -> dict[str, object]:
    return json.loads((out / "quantization_report.json").read_text())["calibration"]


def test_a_folder_of_pictures_and_videos_calibrates(media: Path, tmp_path: Path) -> None:
    arguments = [
        "--calibration",
        media,
        "--sequence-length",
        "450",
        "--search",
        "best",
        "--vision",
        "int8",
        "--vision-alpha",
        "0.5",
    ]
    out = quantize(tmp_path / "out", *arguments)
    found = calibrated(out)
    assert found["source"] == str(media)
    assert (found["samples"], found["sequences"], found["sequence_length"]) == (3, 1, 450)
    assert torch.isfinite(logits(out)).all()

    other = tmp_path / "media"
    other.mkdir()
    for file in media.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "b.txt").write_text("How many shapes are there?\n")
    again = quantize(tmp_path / "again", "--calibration", other, *arguments[2:])
    assert calibrated(again)["digest"] != found["digest"]  # the prompt beside a picture is read


def test_lines_of_json_calibrate(media: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is it?", "image": "a.png", "answer": "a red circle"},
        {"prompt": "Compare them.", "images": ["a.png", "b.png"]},
        {"prompt": "What happens?", "video": "c.mp4"},
        {"prompt": "What is red?", "answer": "The circle is red."},
    ]
    file = media / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = quantize(tmp_path / "out", "--calibration", file, "--sequence-length", "527")
    assert calibrated(out)["samples"] == 4
    assert torch.isfinite(logits(out)).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.jsonl", '{"prompt": "fine"}\n\n{"prompt": "cut', r"s\.jsonl, line 3 is not valid JSON"),
        ("s.jsonl", '{"prompt": "fine"}\n["no", "object"]', r"s\.jsonl, line 2"),
        (
            "s.jsonl",
            '{"prompt": "fine"}\n{"prompt": "x", "image": "gone.png"}',
            r"s\.jsonl, line 2: no file '.*gone\.png'",
        ),
        ("s.jsonl", "", "Not enough calibration data: the samples have 0 tokens"),
        ("s.jsonl", b"\xff\xfe\x00", r"s\.jsonl' is not text in UTF|s\.jsonl. is damaged|utf"),
        ("s.txt", b"caf\xe9", r"s\.txt' is not text in UTF-8: byte 3 is 0xe9"),
    ],
    ids=["broken line", "no object", "missing picture", "empty", "no text", "text in another encoding"],
)
def test_invalid_sample_files_are_reported(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(VilaError, match=message):
        quantize(tmp_path / "out", "--calibration", tmp_path / name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.txt", "results.pt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse giant", "pointer"])
def test_special_files_are_refused_without_waiting_for_them(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 99\n")
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    option = "--search" if name.endswith(".pt") else "--calibration"
    with pytest.raises(VilaError, match=r"pipe|device|bytes|LFS"):
        quantize(tmp_path / "out", option, path)


def test_a_pipe_beside_a_picture_is_no_prompt(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(VilaError, match="named pipe"):
        quantize(tmp_path / "out", "--calibration", tmp_path)


def test_folders_without_media_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.md").write_text("no media")
    with pytest.raises(
        VilaError,
        match=r"folder has no images or videos \(subfolders are not searched\)\. Choose a folder with some",
    ):
        quantize(tmp_path / "out", "--calibration", folder)
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(VilaError, match=r"broken\.png"):
        quantize(tmp_path / "out", "--calibration", folder)
    write_picture(folder / "broken.png", 1)
    (folder / "broken.txt").write_bytes(b"caf\xe9")
    with pytest.raises(VilaError, match=r"broken\.txt' is not text in UTF-8"):
        quantize(tmp_path / "out", "--calibration", folder)
    (folder / "broken.txt").unlink()
    with pytest.raises(
        VilaError, match=r"Not enough calibration data: the samples have \d+ tokens, but 512 are needed"
    ):
        quantize(tmp_path / "out", "--calibration", folder)
    for missing in ("missing", "missing.jsonl"):
        with pytest.raises(
            VilaError, match=rf"Unknown calibration '.*{missing}'.* There is no such folder or file either"
        ):
            quantize(tmp_path / "out", "--calibration", tmp_path / missing)
