"""Video-ChatGPT's benchmark of generated descriptions: five scores. Maaz et al. 2023, arXiv:2306.05424."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_core.media import Video
from vila_eval.data.sources import DataOptions, HubDataset, Rows, check_columns
from vila_eval.fixtures.judged import video_chatgpt
from vila_eval.metrics.judged_videos import VIDEO_CHATGPT
from vila_eval.task import Question, Row, Task

COLUMNS = {
    "Generic": {"video_name": "string", "question": "string", "answer": "string"},
    "Temporal": {"video_name": "string", "question": "string", "answer": "string"},
    "Consistency": {
        "video_name": "string",
        "question_1": 'string, or "None"',
        "question_2": 'string, or "None"',
        "answer": "string",
    },
}
"""Columns of each configuration. In Consistency each of two similar questions has a row; the other one is "None"."""

ASPECTS = {"Generic": ("correctness", "detailed_orientation", "context"), "Temporal": ("temporal",)}


@dataclass(frozen=True)
class RowsByVideo:
    """The rows of all configurations, grouped by video, so that a limit never splits a video or a pair."""

    dataset: HubDataset

    @property
    def description(self) -> str:
        return self.dataset.description

    def open(self, options: DataOptions) -> "OrderedRows":
        return OrderedRows(self.dataset.open(options))


class OrderedRows:
    """The rows by video, in order of first appearance."""

    def __init__(self, rows: Rows):
        self._rows = rows
        names = [str(rows[index]["video_name"]) for index in range(len(rows))]
        first = {name: place for place, name in reversed(list(enumerate(names)))}
        self._order = sorted(range(len(rows)), key=lambda index: first[names[index]])

    @property
    def origin(self) -> Mapping[str, str]:
        return self._rows.origin

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Row:
        return self._rows[self._order[index]]

    def locate(self, path: str) -> Path:
        return self._rows.locate(path)


def ask(row: Row) -> Question:
    """Ask the bare question, as lmms-eval does."""
    config, name = row["config"], row["video_name"]
    check_columns(f"{VIDEOS.description}, {config}", COLUMNS[config], row)
    fields: dict[str, Any]
    if config == "Consistency":
        place = 1 if row["question_1"] != "None" else 2
        text = row[f"question_{place}"]
        # The pair has one score, which belongs to its first question.
        fields = {"aspects": ["consistency"] if place == 1 else [], "pair": name, "place": place}
    else:
        text, fields = row["question"], {"aspects": list(ASPECTS[config])}
    return Question(id="", prompt=[Video(f"{name}.mp4"), text], answer=row["answer"], cluster=name, fields=fields)


VIDEOS = HubDataset(
    "lmms-lab/VideoChatGPT",
    "test",
    {"video_name": "string: the video is Test_Videos/<video_name>.mp4 (or .mkv) in the archive", "answer": "string"},
    config=tuple(COLUMNS),
    archives=("videos.zip",),
    fixture=video_chatgpt,
)

VIDEOCHATGPT = Task(
    "videochatgpt",
    RowsByVideo(VIDEOS),
    ask,
    VIDEO_CHATGPT,
    tags=("openai", "video"),
    max_new_tokens=1024,
    has_video=True,
    keep_together="video_name",
    description="Descriptions of videos: correctness, detail, context, time, consistency; judged.",
    url="https://arxiv.org/abs/2306.05424",
)
