"""Time to the first token of a second question about a video, beside the first.

    python benchmarks/prefix_reuse.py [--model vila-tiny | nvila-lite-8b] [--frames 64] [--json results.json]

The video is a file of `--frames` pictures, decoded by PyAV, or by Pillow where that is not installed. The first
question decodes and resizes it, encodes its frames and reads all its tokens; the second asks something else about the
same file. Wall-clock time from the call to the first token on the host, medians of `--rounds` videos. `nvila-lite-8b`
has random weights of the real shapes and needs a GPU.

Claim: the second answer begins at least 20 times sooner (on a GPU, for 64 frames of NVILA-Lite-8B).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageSequence
import torch

import vila_core as vila
from vila_core.media import MediaLimits, VideoFrames

SIZE = 448


def write_video(path: Path, frames: int, seed: int) -> Path:
    """Write an animation of moving squares."""
    generator = np.random.default_rng(seed)
    pictures: list[PIL.Image.Image] = []
    for frame in range(frames):
        pixels = np.full((SIZE, SIZE, 3), 255, np.uint8)
        left = 2 * frame % (SIZE - 100)
        pixels[50 + left // 2 : 150 + left // 2, left : left + 100] = generator.integers(0, 256, 3)
        pictures.append(PIL.Image.fromarray(pixels))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    return path


def load_model(name: str, frames: int) -> vila.Vila:
    """Return the model, with room for so many frames."""
    if name == "vila-tiny":
        return vila.load("vila-tiny", num_video_frames=frames)
    from ttft import random_model  # needs Triton

    model = random_model()
    preprocess = model.config.preprocess.model_copy(update={"num_video_frames": frames})
    model.config = model.config.model_copy(update={"preprocess": preprocess})
    return model


def decode_with_pillow(
    self: vila.Video, num_frames: int, fps: float = 0.0, limits: MediaLimits | None = None
) -> VideoFrames:
    """`Video.load` of an animation, where PyAV is not installed."""
    del fps, limits
    with PIL.Image.open(str(self.source)) as file:
        frames = [frame.convert("RGB") for frame in PIL.ImageSequence.Iterator(file)][:num_frames]
    return VideoFrames(frames, list(range(len(frames))), None, None)


def first_token_seconds(model: vila.Vila, video: Path, question: str) -> float:
    begin = time.perf_counter()
    completion = model.complete([vila.Video(video), question], max_new_tokens=1)
    assert completion.usage.media_tokens
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("vila-tiny", "nvila-lite-8b"), default="vila-tiny")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.model, args.frames)
    if find_spec("av") is None:
        vila.Video.load = decode_with_pillow  # pyright: ignore[reportAttributeAccessIssue]
    first: list[float] = []
    second: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            video = write_video(Path(folder) / f"{number}.gif", args.frames, number)
            first.append(first_token_seconds(model, video, "What happens in this video?"))
            second.append(first_token_seconds(model, video, "Which color is the square at the end?"))
    first, second = first[1:], second[1:]  # the first round compiles and warms up
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "CPU"
    ratio = statistics.median(first) / statistics.median(second)
    report = {
        "device": device,
        "torch": torch.__version__,
        "model": args.model,
        "frames": args.frames,
        "first_ms": 1e3 * statistics.median(first),
        "second_ms": 1e3 * statistics.median(second),
        "ratio": ratio,
        "cached_tokens": model.engine.stats().cached_tokens,
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))
    if args.model != "vila-tiny" and ratio < 20:
        sys.exit(f"The second answer begins only {ratio:.1f} times sooner.")


if __name__ == "__main__":
    main()
