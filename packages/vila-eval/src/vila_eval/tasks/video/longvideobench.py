"""LongVideoBench: questions that refer to moments of videos up to an hour long. Wu et al. 2024, arXiv:2407.15754."""

import json
from collections.abc import Sequence

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.long_videos import longvideobench
from vila_eval.metric import Answered, Submission
from vila_eval.metrics.choices.longvideobench import LONGVIDEOBENCH_CHOICE
from vila_eval.prompts import letter, multiple_choice_prompt
from vila_eval.task import Question, Row, Task

COLUMNS = {
    "id": "string",
    "video_path": "string: below videos/",
    "question": "string",
    **{f"option{index}": "string, or N/A where there are fewer" for index in range(5)},
    "correct_choice": "number: index of the right option; none in the test split",
    "duration_group": "number: 15, 60, 600 or 3600 seconds at most",
    "question_category": "string: one of seventeen",
}
URL = "https://arxiv.org/abs/2407.15754"


def ask_hidden(row: Row) -> Question:
    """Ask with lmms-eval's prompt, without subtitles."""
    options = [row[f"option{index}"] for index in range(5) if row[f"option{index}"] != "N/A"]
    return Question(
        id=row["id"],
        prompt=[Video(f"videos/{row['video_path']}"), f"{multiple_choice_prompt(row['question'], options)}\n"],
        options=options,
        groups={"duration": f"{row['duration_group']:g} s", "category": row["question_category"]},
        cluster=row["video_path"],
    )


def ask(row: Row) -> Question:
    """Ask as `ask_hidden` does, with the answer of the validation split."""
    question = ask_hidden(row)
    return Question(
        question.id,
        question.prompt,
        letter(row["correct_choice"]),
        question.options,
        groups=question.groups,
        cluster=question.cluster,
    )


def write_submission(answers: Sequence[Answered]) -> str:
    """Write the leaderboard's JSON: id -> answer."""
    return json.dumps({answered.question.id: answered.answer for answered in answers}, ensure_ascii=False)


def _source(split: str) -> HubDataset:
    return HubDataset(
        "longvideobench/LongVideoBench",
        split,
        COLUMNS,
        data_files=f"{split}-*.parquet",
        archives=("videos.tar*",),
        fixture=longvideobench,
    )


LONGVIDEOBENCH_VAL_V = Task(
    "longvideobench_val_v",
    _source("validation"),
    ask,
    LONGVIDEOBENCH_CHOICE,
    version=2,
    tags=("local", "video"),
    has_video=True,
    description="Referring questions about long videos, up to five options.",
    url=URL,
)
LONGVIDEOBENCH_TEST_V = Task(
    "longvideobench_test_v",
    _source("test"),
    ask_hidden,
    None,
    tags=("submission", "video"),
    has_video=True,
    submission=Submission(
        "longvideobench_test_for_submission.json",
        write_submission,
        "https://huggingface.co/spaces/longvideobench/LongVideoBench",
    ),
    description="Referring questions about long videos, for the leaderboard.",
    url=URL,
)
