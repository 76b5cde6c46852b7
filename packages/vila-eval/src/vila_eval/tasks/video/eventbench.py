"""Event-Bench: events in long videos, four options. Du et al. 2024, arXiv:2406.14129."""

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_choices import eventbench
from vila_eval.metrics.choices.eventbench import INITIAL
from vila_eval.prompts import letter, multiple_choice_prompt
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask with Event-Bench's own prompt, as VILA does. The group is the row's task, if the dataset names it."""
    return Question(
        id=str(row["question_id"]),
        prompt=[Video(row["video"]), multiple_choice_prompt(row["question"], row["candidates"])],
        answer=letter(row["candidates"].index(row["answer"])),
        options=row["candidates"],
        groups={"task": row["task"]} if "task" in row else {},
        cluster=row["video"],
    )


EVENTBENCH_VAL = Task(
    "eventbench_val",
    HubDataset(
        "RUCAIBox/Event-Bench",
        "test",
        {
            "question_id": "number or string",
            "video": "string: path of the video",
            "question": "string",
            "candidates": "list of four strings",
            "answer": "string: the right candidate",
        },
        data_files="test.jsonl",
        archives=("*.zip", "*.tar*"),
        fixture=eventbench,
        media_from="the Google Drive link in the README of github.com/Richar-Du/Event-Bench",
    ),
    ask,
    INITIAL,
    tags=("core", "local"),
    has_video=True,
    description="Events in long videos, four options.",
    url="https://arxiv.org/abs/2406.14129",
)
