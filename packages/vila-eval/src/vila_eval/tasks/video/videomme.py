"""Video-MME: videos from seconds to an hour, in six domains, with and without subtitles.

Fu et al. 2024, arXiv:2405.21075. The prompts are VILA's, which differ from lmms-eval's. Subtitles are those shown at
the frames that the model sees.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vila_core.errors import MediaError
from vila_core.input_files import Content, open_input, read_input
from vila_core.media import MediaLimits, Video
from vila_eval.data.sources import DataOptions, HubDataset, Rows
from vila_eval.fixtures.long_videos import videomme
from vila_eval.metrics.choices.videomme import DIMENSIONS, VIDEO_MME_METRIC
from vila_eval.prompts import unlettered
from vila_eval.task import Question, Row, Task

FRAMES = (8, 16, 32, 64, 128, 256, 512)
INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video{subtitles}. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
MAX_SUBTITLE_BYTES = 2**24
ADVICE = "Download the dataset again."
_CLOCKS = re.compile(r"(\d+):(\d+):(\d+)[,.](\d+) --> (\d+):(\d+):(\d+)[,.](\d+)")
_SPEECH = re.compile(r'<font color="white" size=".72c">(.*?)</font>')


class Subtitle(NamedTuple):
    """One subtitle, with its start and end in seconds."""

    start: float
    end: float
    text: str


def ask(row: Row) -> Question:
    """Ask a question, with the subtitles if `WithSubtitles` added them to the row."""
    subtitles = row.get("subtitles")
    listed = "" if subtitles is None else f"This video's subtitles are listed below:\n{subtitles}\n"
    instruction = INSTRUCTION.format(subtitles="" if subtitles is None else " and the subtitles")
    options = "\n".join(row["options"])
    return Question(
        id=row["question_id"],
        prompt=[
            Video(f"data/{row['videoID']}.mp4"),
            f"{listed}{instruction}\n{row['question']}\n{options}\nThe best answer is:",
        ],
        answer=row["answer"],
        options=[unlettered(option) for option in row["options"]],
        groups={dimension: row[dimension] for dimension in DIMENSIONS},
        cluster=row["videoID"],
    )


@dataclass(frozen=True)
class WithSubtitles:
    """Video-MME's rows with a column "subtitles": those shown at `frames` frames, in order; empty without a file."""

    dataset: HubDataset
    frames: int

    @property
    def description(self) -> str:
        return f"{self.dataset.description} with subtitles"

    def open(self, options: DataOptions) -> "SubtitledRows":
        return SubtitledRows(self.dataset.open(options), self.frames)


class SubtitledRows:
    """Rows whose subtitle and video files are read on access."""

    def __init__(self, rows: Rows, frames: int):
        self._rows, self._frames = rows, frames

    @property
    def origin(self) -> Mapping[str, str]:
        return self._rows.origin

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        file = self._rows.locate(f"subtitle/{row['videoID']}.srt")
        if not file.exists():
            return row
        data = read_input(file, max_bytes=MAX_SUBTITLE_BYTES, error=MediaError, advice=ADVICE)
        subtitles = parse_subtitles(data.decode("utf-8", errors="replace"))
        shown = shown_subtitles(subtitles, *count_frames(self._rows.locate(f"data/{row['videoID']}.mp4")), self._frames)
        return {**row, "subtitles": "\n".join(shown)}

    def locate(self, path: str) -> Path:
        return self._rows.locate(path)


def parse_subtitles(text: str) -> list[Subtitle]:
    """Parse the blocks of an SRT file, ignoring those without a time or text.

    A later block replaces an earlier one at the same time.
    """
    found: dict[tuple[float, float], str] = {}
    for block in text.replace("\r\n", "\n").split("\n\n"):
        _, time, *lines = [*block.split("\n"), "", ""]
        if clocks := _CLOCKS.match(time):
            start, end = (
                int(h) * 3600 + int(m) * 60 + float(f"{s}.{ms}")
                for h, m, s, ms in (clocks.groups()[:4], clocks.groups()[4:])
            )
            found[start, end] = " ".join(lines).rstrip()
    return [Subtitle(start, end, text) for (start, end), text in found.items() if text]


def shown_subtitles(subtitles: Sequence[Subtitle], count: int, rate: float, frames: int) -> list[str]:
    """Return the text of the subtitles shown at any of `frames` frames, spaced evenly over the video's `count` frames.

    A subtitle is shown from frame int(start * rate) to before frame int(end * rate). Subtitles without the font tag of
    Video-MME's files are left out. Source: VILA's `videomme_doc_to_text_subtitle`, which lists them in the order of a
    Python set.
    """
    taken = [round(index * (count - 1) / max(frames - 1, 1)) for index in range(frames)] if count else []
    texts: list[str] = []
    for start, end, text in subtitles:
        is_shown = any(int(start * rate) <= frame < int(end * rate) for frame in taken)
        if is_shown and (speech := _SPEECH.search(text)):
            texts.append(speech[1])
    return texts


def count_frames(path: Path) -> tuple[int, float]:
    """Return the number of frames of a video and the frames per second, or (0, 0) if the video cannot be read.

    The sample then fails when its video is read, with the reason.
    """
    from av.error import FFmpegError

    from vila_core.media.containers import open_container, video_stream

    size = MediaLimits().max_video_bytes
    try:
        with (
            open_input(path, max_bytes=size, error=MediaError, advice=ADVICE, content=Content.ANY) as file,
            open_container(file) as container,
        ):
            stream = video_stream(container, path.name)
            rate = float(stream.average_rate or 0)
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            return stream.frames or round(seconds * rate), rate
    except (MediaError, OSError, ValueError, FFmpegError):
        return 0, 0.0


DATASET = HubDataset(
    "lmms-lab/Video-MME",
    "test",
    {
        "question_id": "string",
        "videoID": "string: the video is data/<videoID>.mp4, its subtitles subtitle/<videoID>.srt",
        "duration": "string: short, medium or long",
        "domain": "string: one of six",
        "sub_category": "string: one of thirty",
        "task_type": "string: one of twelve",
        "question": "string",
        "options": "list of four strings, each with its letter: 'A. …'",
        "answer": "string: letter of the right option",
    },
    config="videomme",
    archives=("*.zip",),
    fixture=videomme,
)
REGRESSION = ("videomme-8", *(f"videomme_w_subtitle-{frames}" for frames in (64, 128, 256, 512)))
"""Tasks with VILA's tag "regression"."""


def _task(name: str, source: HubDataset | WithSubtitles, frames: int, description: str) -> Task:
    return Task(
        f"{name}-{frames}",
        source,
        ask,
        VIDEO_MME_METRIC,
        version=2,
        tags=("local", "video", "regression") if f"{name}-{frames}" in REGRESSION else ("local", "video"),
        max_new_tokens=16,
        num_video_frames=frames,
        has_video=True,
        description=description,
        url="https://arxiv.org/abs/2405.21075",
    )


VIDEOMME = (
    *(_task("videomme", DATASET, frames, f"Videos of all lengths, {frames} frames.") for frames in FRAMES),
    *(
        _task(
            "videomme_w_subtitle",
            WithSubtitles(DATASET, frames),
            frames,
            f"Videos of all lengths, {frames} frames, with subtitles.",
        )
        for frames in FRAMES
    ),
)
