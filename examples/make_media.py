"""Draw the bundled images and video, and write the demo's questions with their correct answers.

    python examples/make_media.py

All are from the test split of the drawn world: the embedded model was not trained on their combinations.
"""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vila_train.tiny.world import make_sample
from vila_train.tiny.world.drawing import draw
from vila_train.tiny.world.scenes import Clip, Scene

FOLDER = Path(__file__).parent / "media"
SIZE = 384
FRAMES_PER_SECOND = 4
CASES = {
    "scene": ("caption_things", 6),
    "chart": ("chart", 5),
    "word": ("word", 2),
    "pair": ("pair", 3),
    "motion": ("motion", 3),
}
"""File name -> task of the drawn world and sample index."""


def write_video(clip: Clip, path: Path) -> None:
    """Encode the frames of `clip` as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND), options={"crf": "12"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for scene in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(draw(scene, SIZE)), format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Write every file of `CASES`."""
    FOLDER.mkdir(exist_ok=True)
    questions: list[dict[str, object]] = []
    for name, (task, index) in CASES.items():
        sample = make_sample("test", task, index)
        pictures = [part for part in sample.prompt if isinstance(part, Scene)]
        files: list[str] = []
        for number, picture in enumerate(pictures, 1):
            files.append(f"{name}.png" if len(pictures) == 1 else f"{name}-{number}.png")
            draw(picture, SIZE).save(FOLDER / files[-1], optimize=True)
        for part in sample.prompt:
            if isinstance(part, Clip):
                files.append(f"{name}.mp4")
                write_video(part, FOLDER / files[-1])
        questions.append({"media": files, "text": sample.question, "answer": sample.answer})
    (FOLDER / "questions.json").write_text(json.dumps(questions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
