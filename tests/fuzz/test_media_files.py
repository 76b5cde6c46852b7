"""Hostile media where other programs look them up: calibration folders, data files and image columns of datasets.

Whatever one file is, the others are used or the run ends with a one-line error.
"""

import base64
import json
import os
import random
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from tests.fuzz.bounded import assert_bounded
from tests.fuzz.test_images import bmp, encode, gif, picture, png, png_chunk, segment, zeros
from tests.fuzz.test_videos import draw_video

from vila_core.checkpoint.embedded import embedded_model
from vila_core.cli.progress import NoProgress
from vila_core.errors import VilaError
from vila_core.media import Image, Video
from vila_eval.data.sources import DataOptions, HubDataset, LocalFiles, Source
from vila_eval.metrics import EXACT_MATCH
from vila_eval.options import ModelOptions, Planned, RunOptions
from vila_eval.running.runner import evaluate
from vila_eval.task import Question, Task
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model

pytestmark = pytest.mark.slow

GOOD_PNG = encode(picture(), "PNG")
GOOD_JPEG = encode(picture(300, 200), "JPEG")
GOOD_MP4 = draw_video("libx264", "mp4")
PROGRESSIVE = encode(picture(60, 60), "JPEG", progressive=True)
SCANS = PROGRESSIVE[:-2].rpartition(b"\xff\xda")

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(5000),
    "noise": random.Random(12).randbytes(5000),
    "text": b"a picture of a cat\n" * 100,
    "web page": b"<!DOCTYPE html><html>Sign in</html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
    "signature of PNG": b"\x89PNG\r\n\x1a\n",
    "signature of JPEG": b"\xff\xd8\xff\xe0",
    "signature of MP4": b"\0\0\0\x18ftypisom\0\0\0\0isom",
    "half a PNG": GOOD_PNG[: len(GOOD_PNG) // 2],
    "half a JPEG": GOOD_JPEG[: len(GOOD_JPEG) // 2],
    "half an MP4": GOOD_MP4[: len(GOOD_MP4) // 2],
    "PNG": GOOD_PNG,
    "MP4": GOOD_MP4,
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.7\n" + bytes(1000),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "GIF of 200 large frames": gif(9000, 9000, 200),
    "GIF of 100,000 frames": gif(1000, 1000, 100_000),
    "PNG of 30,000x1": png(30_000, 1, png_chunk(b"IDAT", zeros(1 << 20))),
    "PNG of 1x30,000": png(1, 30_000, png_chunk(b"IDAT", zeros(1 << 20))),
    "PNG of 60,000x60,000": png(60_000, 60_000, png_chunk(b"IDAT", zeros(1 << 28))),
    "BMP of 65,535x65,535": bmp(65_535, 65_535, 24, 0),
    "PPM of white space": b"P6" + b" " * 2_000_000,
    "JPEG of 3,000 scans": SCANS[0] + (SCANS[1] + SCANS[2]) * 3000 + b"\xff\xd9",
    "JPEG of APP segments": GOOD_JPEG[:2] + segment(0xE5, bytes(65_000)) * 50 + GOOD_JPEG[2:],
    "PNG with much text": png(40, 30, *[png_chunk(b"tEXt", b"a\0" + b"x" * 10_000)] * 200),
    "Y4M of 16,000x16,000": b"YUV4MPEG2 W16000 H16000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(10_000),
    "20,000 small frames": draw_video("mpeg4", "matroska", frames=20_000, size=(16, 16)),
    "MP4 that claims a 4-GB moov": b"\0\0\0\x18ftypisom\0\0\0\0isom" + struct.pack(">I", 2**32 - 1) + b"moov",
}
SUFFIXES = (".png", ".mp4")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


PLACES: Mapping[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a loop": lambda path: path.symlink_to(path.name),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a sparse terabyte": sparse,
}


def files(root: Path) -> dict[str, Path]:
    """A folder with one good picture and one hostile file, by what that file is; the file is named `medium.*`."""
    found: dict[str, Path] = {}
    makers: dict[str, Callable[[Path], object]] = {
        **{name: lambda path, content=content: path.write_bytes(content) for name, content in CONTENTS.items()},
        **PLACES,
    }
    for number, (name, make) in enumerate(makers.items()):
        suffix = SUFFIXES[number % 2]
        folder = root / str(number)
        folder.mkdir(parents=True)
        (folder / "good.png").write_bytes(GOOD_PNG)
        make(folder / f"medium{suffix}")
        found[f"{name} as {suffix}"] = folder / f"medium{suffix}"
    return found


def quantize(calibration: Path, out: Path) -> None:
    options = QuantizationOptions(sequences=1, sequence_length=64, search="nearest", calibration=str(calibration))
    quantize_model(embedded_model(), out, options, device="cpu")


def test_calibration_folders(tmp_path: Path) -> None:
    found = files(tmp_path / "media")
    cases = {
        name: partial(quantize, path.parent, tmp_path / f"out-{number}")
        for number, (name, path) in enumerate(found.items())
    }
    for name, make in PLACES.items():  # beside a picture lies its prompt
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        (folder / "good.png").write_bytes(GOOD_PNG)
        make(folder / "good.txt")
        cases[f"{name} as a prompt"] = partial(quantize, folder, folder / "out")
    assert_bounded(cases)


def test_calibration_files_that_name_media(tmp_path: Path) -> None:
    cases: dict[str, Callable[[], object]] = {}
    for number, (name, path) in enumerate(files(tmp_path / "media").items()):
        for key in ("image", "video") if number % 4 == 0 else ("image",):
            file = path.with_name(f"{key}.jsonl")
            file.write_text(json.dumps({"prompt": "What is this? " * 20, key: path.name}) + "\n")
            cases[f"{key}: {name}"] = partial(quantize, file, tmp_path / f"out-{len(cases)}")
    assert_bounded(cases)


def run(source: Source, ask: Callable[..., Question], out: Path, mirror: Path | None = None) -> None:
    """Answer three rows, of which one has the hostile medium; it must fail or be answered, and the others answered."""
    task = Task("media", source, ask, EXACT_MATCH)
    options = RunOptions(out, DataOptions(out / "cache", mirror=mirror), batch_size=3)
    (outcome,) = evaluate(ModelOptions(path="vila-tiny", device="cpu"), [Planned(task, "media")], options, NoProgress())
    if outcome.error is not None:
        raise VilaError(outcome.error)
    assert outcome.result is not None
    assert outcome.result.counts.failed <= 1, outcome.result.counts


def test_data_files_that_name_media(tmp_path: Path) -> None:
    def ask(kind: type[Image | Video], row: Mapping[str, str]) -> Question:
        return Question(row["id"], [(kind if row["id"] == "1" else Image)(row["file"]), "What is this?"], "x")

    cases: dict[str, Callable[[], object]] = {}
    for number, (name, path) in enumerate(files(tmp_path / "media").items()):
        rows = [{"id": str(row), "file": path.name if row == 1 else "good.png"} for row in range(3)]
        (path.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = LocalFiles(str(path.parent / "rows.jsonl"), {"id": "string", "file": "string"})
        kind = Video if number % 3 == 0 else Image
        cases[f"{kind.__name__}: {name}"] = partial(run, source, partial(ask, kind), tmp_path / f"out-{number}")
    assert_bounded(cases)


def test_data_files_that_hold_media(tmp_path: Path) -> None:
    def ask(row: Mapping[str, str]) -> Question:
        return Question(row["id"], [Image(f"data:image/png;base64,{row['data']}"), "What is this?"], "x")

    cases: dict[str, Callable[[], object]] = {}
    for name, content in {**CONTENTS, "no base64": b"\xff"}.items():
        hostile = "%%%" if name == "no base64" else base64.b64encode(content).decode()
        good = base64.b64encode(GOOD_PNG).decode()
        rows = [{"id": str(row), "data": hostile if row == 1 else good} for row in range(3)]
        file = tmp_path / f"{len(cases)}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cases[name] = partial(
            run, LocalFiles(str(file), {"id": "string", "data": "string"}), ask, tmp_path / f"out-{len(cases)}"
        )
    assert_bounded(cases)


NAMES = (
    "../../etc/passwd", "/etc/passwd", "/dev/zero", "no such file", "", "\0", "\n", "x" * 5000, "\x1b[31m", "~nobody/a",
    "https://127.0.0.1:9/a.png", "file:///etc/passwd", "data:,", "pipe", "folder", "CON", ".", "a.png\0.exe",
)  # fmt: skip


def test_image_columns(tmp_path: Path) -> None:
    """Cells with bytes, and cells with a path, as `datasets` stores them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def ask(row: Mapping[str, object]) -> Question:
        return Question(str(row["id"]), [row["image"], "What is this?"], "x")  # type: ignore[list-item]

    cells: dict[str, dict[str, object]] = {
        **{name: {"bytes": content, "path": "a.png"} for name, content in CONTENTS.items()},
        **{f"path {name[:20]!r}": {"bytes": None, "path": name} for name in NAMES},
        "nothing": {"bytes": None, "path": None},
    }
    good = {"bytes": GOOD_PNG, "path": "a.png"}
    cases: dict[str, Callable[[], object]] = {}
    for number, (name, cell) in enumerate(cells.items()):
        root = tmp_path / str(number)
        (root / "acme/shapes/data").mkdir(parents=True)
        os.mkfifo(root / "acme/shapes/pipe")
        (root / "acme/shapes/folder").mkdir()
        table = pa.table({"id": ["0", "1", "2"], "image": [good, cell, good]})
        pq.write_table(table, root / "acme/shapes/data/test-00000-of-00001.parquet")
        source = HubDataset("acme/shapes", "test", {"id": "string", "image": "image"})
        cases[name] = partial(run, source, ask, root / "out", root)
    assert_bounded(cases)


def test_good_media_are_answered(tmp_path: Path) -> None:
    """So that the tests above do not pass because everything is refused."""

    def ask(row: Mapping[str, str]) -> Question:
        return Question(row["id"], [Image(row["file"]), "What is this?"], "x")

    (tmp_path / "good.png").write_bytes(GOOD_PNG)
    (tmp_path / "clip.mp4").write_bytes(GOOD_MP4)
    (tmp_path / "rows.jsonl").write_text('{"id": "0", "file": "good.png"}\n')
    run(LocalFiles(str(tmp_path / "rows.jsonl"), {"id": "string", "file": "string"}), ask, tmp_path / "out")
    (tmp_path / "rows.jsonl").unlink()
    quantize(tmp_path, tmp_path / "quantized")
