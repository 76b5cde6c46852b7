"""Sampled frame indices and their contents against recordings of the reference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from vila_core.media import Video
from vila_core.media.video import sample_indices

GOLDEN = Path(__file__).parent / "data" / "golden"
RECORDED: dict[str, list[dict[str, Any]]] = json.loads((GOLDEN / "functions" / "frame_sampling.json").read_text())


@pytest.mark.parametrize("total", sorted({record["total"] for record in RECORDED["llava.utils.media._load_video"]}))
def test_indices_of_a_video_file(total: int) -> None:
    records = [record for record in RECORDED["llava.utils.media._load_video"] if record["total"] == total]
    for record in records:
        readable = total - record["unreadable_tail"]  # the reader drops unreadable frames at the end
        assert (
            sample_indices(readable, record["num_frames"], record["video_fps"], record["fps"]) == record["indices"]
        ), record


def test_indices_of_the_remote_code() -> None:
    for record in RECORDED["llava.remote_code.media._load_video"]:
        assert (
            sample_indices(record["total"] - record["unreadable_tail"], record["num_frames"], 0.0, 0.0)
            == record["indices"]
        ), record


@pytest.mark.parametrize(
    "record", RECORDED["directory"], ids=lambda record: f"{record['num_frames']} of {record['files']}"
)
def test_a_folder_of_frames(record: dict[str, Any]) -> None:
    loaded = Video(GOLDEN / "inputs" / "video_12frames").load(record["num_frames"])
    assert loaded.indices == record["indices"]
    for frame, index in zip(loaded.frames, loaded.indices, strict=True):
        (expected,) = Video([GOLDEN / "inputs" / "video_12frames" / f"{index:03d}.png"]).load(1).frames
        assert (np.asarray(frame) == np.asarray(expected)).all()


@pytest.mark.parametrize("fps", [0, 2])
def test_decoded_frames_of_an_avi(fps: int) -> None:
    expected = load_file(GOLDEN / "functions" / "video_avi_decoded.safetensors")[
        f"num_frames8_fps{fps}"
    ]  # [T, H, W, 3] uint8
    loaded = Video(GOLDEN / "inputs" / "video_12frames.avi").load(8, fps)
    frames = np.stack([np.asarray(frame) for frame in loaded.frames])
    assert frames.shape == expected.shape
    difference = np.abs(frames.astype(int) - expected).max()
    assert difference <= 3, f"frames differ by {difference} of 255"
    assert loaded.timestamps == pytest.approx([index / 6 for index in loaded.indices])
    assert loaded.duration == pytest.approx(2.0)
